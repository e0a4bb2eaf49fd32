"""Data sets on the Hugging Face Hub: their files of rows, downloaded and checked by hash.

As for models, what is in the cache is used without asking the network, so that a run finds the same rows from
day to day: a branch means the commit that was fetched first. Name a revision for another.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corral.checkpoints.cache import require_space, size_in_words, whole_file
from corral.checkpoints.hub import ANSWER_WITHIN, Hub
from corral.checkpoints.hub_errors import HubOutOfReach, hub_errors
from corral.checkpoints.hub_progress import Counter, bar_class, quiet_hub_log
from corral.checkpoints.names import HubName
from corral.checkpoints.report import Report
from corral.checkpoints.snapshot import RemoteFile
from corral.tune.config import Source
from corral.tune.data.repository import CARD, choose_files, data_files
from corral.tune.errors import TuneError

_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@:\s]+))?", re.ASCII)
_KIND = "dataset"

Listing = dict[str, RemoteFile]


@dataclass(frozen=True)
class DataSetName:
    """A data set on the Hub at a revision."""

    repo_id: str
    revision: str | None = None

    @classmethod
    def parse(cls, name: str) -> DataSetName | None:
        """Reads org/name[@revision]; None where it is something else."""
        match = _NAME.fullmatch(name)
        if match is None or ".." in name.split("/"):
            return None
        return cls(match["repo"], match["revision"])

    @property
    def in_sentences(self) -> HubName:
        """What the Hub's errors call it; its page lies there too."""
        return HubName(f"datasets/{self.repo_id}", self.revision)


def fetch_data_set(name: DataSetName, source: Source, report: Report) -> list[tuple[str, Path]]:
    """The files that hold the rows of a source: what they are called in the repository, and where they are.

    Raises:
        TuneError: the Hub is out of reach, or the data set has no such rows.
        ResolveError: the data set is gated, has no such revision, or cannot be written to the cache.
    """
    hub = Hub.from_environment()
    record = _record(hub, name, source)
    known = _recorded(hub, name, record)
    if known is not None:
        return known
    with _in_words(name, hub):
        commit, listing = _list(hub, name)
        if not data_files(listing):
            raise TuneError(
                f"{source.path} has no files of rows (*.parquet, *.jsonl or *.json); the Hub may have "
                f"made some: try {name.repo_id}@refs/convert/parquet"
            )
        card = (
            _take(hub, name, commit, listing[CARD]).read_text("utf-8", "replace") if CARD in listing else ""
        )
        chosen = [listing[path] for path in choose_files(listing, card, source)]
        total = sum(file.size or 0 for file in chosen)
        require_space(hub.cache.folder, total, f"The download of {source.path}")
        size = size_in_words(total)
        report.notice(f"Downloading {source.path} from {hub.endpoint}: {len(chosen)} files, {size}.")
        counter = Counter(lambda done: report.progress(source.path, min(done, total), total))
        files = [(file.path, _take(hub, name, commit, file, counter)) for file in chosen]
    with whole_file(record) as out:
        out.write(json.dumps({"commit": commit, "files": [path for path, _ in files]}, indent=1).encode())
    return files


def _storage(hub: Hub, name: DataSetName) -> Path:
    return hub.cache.folder / f"datasets--{name.repo_id.replace('/', '--')}"


def _record(hub: Hub, name: DataSetName, source: Source) -> Path:
    asked = json.dumps([name.revision, source.subset, source.split])
    return _storage(hub, name) / ".corral" / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"


def _recorded(hub: Hub, name: DataSetName, record: Path) -> list[tuple[str, Path]] | None:
    if not record.is_file():
        return None
    try:
        noted = json.loads(record.read_bytes())
        folder = _storage(hub, name) / "snapshots" / noted["commit"]
        files = [(path, folder / path) for path in noted["files"]]
    except (ValueError, KeyError, TypeError):
        return None
    return files if files and all(file.exists() for _, file in files) else None


def _list(hub: Hub, name: DataSetName) -> tuple[str, Listing]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if hub.offline:
        raise HubOutOfReach(name.in_sentences, hub.endpoint, "HF_HUB_OFFLINE is set")
    try:
        info = HfApi(endpoint=hub.endpoint).dataset_info(
            name.repo_id, revision=name.revision or "main", files_metadata=True, timeout=ANSWER_WITHIN
        )
        files = {sibling.rfilename: _remote(sibling) for sibling in info.siblings or ()}
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, HfHubHTTPError):  # one of them is a ValueError too
            raise
        raise HubOutOfReach(name.in_sentences, hub.endpoint, "what answers there is not a Hub") from error
    if info.sha is None:
        raise HubOutOfReach(name.in_sentences, hub.endpoint, "its answer names no commit")
    return info.sha, files


def _remote(sibling: Any) -> RemoteFile:
    lfs = sibling.lfs
    return RemoteFile(
        path=sibling.rfilename,
        size=lfs.size if lfs is not None else sibling.size,
        sha256=lfs.sha256 if lfs is not None else None,
        git_sha1=sibling.blob_id if lfs is None else None,
    )


def _take(hub: Hub, name: DataSetName, commit: str, file: RemoteFile, counter: Counter | None = None) -> Path:
    """One file, downloaded unless it is there, and checked; a copy that fails the check does not stay."""
    was_there = (_storage(hub, name) / "snapshots" / commit / file.path).exists()
    for _ in range(2 if was_there else 1):
        path = _download(hub, name, commit, file, counter or Counter(lambda _: None))
        if file.matches(path):
            return path
        hub.cache.discard(path)
    raise TuneError(
        f"{file.path} of {name.repo_id} arrived damaged: its hash is not the one that the Hub announces, so "
        "it was removed; try again"
    )


def _download(hub: Hub, name: DataSetName, commit: str, file: RemoteFile, counter: Counter) -> Path:
    from huggingface_hub import hf_hub_download

    bar: Any = bar_class(counter)  # not a tqdm, but all of it that is asked for
    path = hf_hub_download(
        name.repo_id,
        file.path,
        repo_type=_KIND,
        revision=commit,
        cache_dir=hub.cache.folder,
        endpoint=hub.endpoint,
        tqdm_class=bar,
    )
    return Path(path)


@contextmanager
def _in_words(name: DataSetName, hub: Hub) -> Iterator[None]:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        with hub_errors(name.in_sentences, hub.endpoint), quiet_hub_log():
            try:
                yield
            except GatedRepoError:  # a kind of the next
                raise
            except RepositoryNotFoundError:
                raise _missing(name, hub) from None
    except HubOutOfReach as error:
        raise TuneError(
            f"the data set {name.repo_id} is not in the cache and {error.reason}; check the network or "
            "HF_ENDPOINT"
        ) from None


def _missing(name: DataSetName, hub: Hub) -> TuneError:
    return TuneError(
        f"there is no file or folder {name.repo_id!r}, and no data set of that name on the Hub at "
        f"{hub.endpoint}, or it is private and HF_TOKEN gives no access to it"
    )
