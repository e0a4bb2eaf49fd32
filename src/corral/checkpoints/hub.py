"""Models on the Hugging Face Hub, through `huggingface_hub`: listed, downloaded, and checked by hash."""

from __future__ import annotations

import os
import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corral.checkpoints.cache import hub_cache_folder, require_space, size_in_words
from corral.checkpoints.hub_cache import HubCache
from corral.checkpoints.hub_errors import HubOutOfReach, hub_errors
from corral.checkpoints.hub_progress import Counter, bar_class, quiet_hub_log
from corral.checkpoints.names import HubName
from corral.checkpoints.report import Report, silent
from corral.checkpoints.snapshot import Choice, Listing, RemoteFile, choose_files
from corral.errors import ResolveError

ANSWER_WITHIN = 10.0  # seconds for the Hub's first answer, name resolution and all
ANSWER_WITHIN_IF_REPLACEABLE = 3.0  # where another source stands by, so that it can start within five seconds
_ON = ("1", "ON", "YES", "TRUE")
_CONFIGS = ("config.json", "params.json", "original/params.json")
_GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Hub:
    """One Hub and the cache in front of it.

    The access token is left to `huggingface_hub`, which takes it from `HF_TOKEN` or a saved login.
    """

    endpoint: str
    cache: HubCache
    offline: bool = False

    @classmethod
    def from_environment(cls) -> Hub:
        """The Hub that `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE` and `HF_HUB_OFFLINE` describe just now."""
        from huggingface_hub import constants

        endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
        return cls(endpoint, HubCache(hub_cache_folder()), offline=said.upper() in _ON)

    def fetch(self, wanted: HubName, report: Report = silent, answer_within: float = ANSWER_WITHIN) -> Path:
        """Bring the newest state of `wanted` into the cache, whole and checked, and return what to open.

        Raises HubOutOfReach where the Hub gives no usable answer, and ResolveError for everything else.
        """
        commit, listing = self._list(wanted, answer_within)
        known = self.cache.find_at(wanted, commit)
        if known is not None:
            self.cache.point(wanted, commit)
            return known
        with hub_errors(wanted, self.endpoint), quiet_hub_log():
            choice = choose_files(listing, wanted, lambda file: self._take(wanted, commit, file))
            counter = self._prepare(wanted, commit, choice, report)
            for file in choice.files:
                self._take(wanted, commit, file, counter)
        return self.cache.finish(wanted, commit, choice)

    def fetch_config(self, wanted: HubName, report: Report = silent) -> Path:
        """Bring only what describes the network: return `config.json`, or the folder of Meta's `params.json`.

        `generation_config.json` comes along where there is one. Raises what `fetch` raises.
        """
        commit, listing = self._list(wanted, ANSWER_WITHIN)
        known = self.cache.find_config_at(wanted, commit)
        if known is not None:
            return known
        names = [name for name in _CONFIGS if name in listing][:1]
        if not names or wanted.filename is not None:
            raise ResolveError(
                f"The shape of {wanted} stands only in its weights: fetch them with `corral pull {wanted}`."
            )
        with hub_errors(wanted, self.endpoint), quiet_hub_log():
            names += [name for name in (_GENERATION,) if name in listing]
            total = sum(listing[name].size or 0 for name in names)
            counter = Counter(lambda done: report.progress(f"{wanted} config", min(done, total), total))
            path, *_ = [self._take(wanted, commit, listing[name], counter) for name in names]
        if self.cache.commit_of(wanted) is None:  # a known branch keeps its whole snapshot
            self.cache.point(wanted, commit)
        return path if path.name == "config.json" else path.parent

    def _list(self, wanted: HubName, answer_within: float) -> tuple[str, Listing]:
        """The commit that the revision means now, and the repository's files there.

        The question is asked in a thread, because a name look-up that hangs cannot be given a time limit. The
        request's own limit lies behind ours and only ends the thread.
        """
        if self.offline:
            raise HubOutOfReach(wanted, self.endpoint, "HF_HUB_OFFLINE is set")
        answers: queue.SimpleQueue[tuple[str, Listing] | Exception] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(self._ask(wanted, timeout=answer_within + 5))
            except Exception as error:  # raised again below, in the thread that waits
                answers.put(error)

        with hub_errors(wanted, self.endpoint), quiet_hub_log():
            threading.Thread(target=ask, daemon=True).start()
            try:
                answer = answers.get(timeout=answer_within)
            except queue.Empty:
                reason = f"no answer in {answer_within:g} seconds"
                raise HubOutOfReach(wanted, self.endpoint, reason) from None
            if isinstance(answer, Exception):
                raise answer
            return answer

    def _ask(self, wanted: HubName, timeout: float) -> tuple[str, Listing]:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        try:
            info = HfApi(endpoint=self.endpoint).model_info(
                wanted.repo_id, revision=wanted.branch, files_metadata=True, timeout=timeout
            )
            files = [_remote_file(sibling) for sibling in info.siblings or ()]
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, HfHubHTTPError):  # one of them is a ValueError too
                raise
            raise HubOutOfReach(wanted, self.endpoint, "what answers there is not a Hub") from error
        if info.sha is None:
            raise HubOutOfReach(wanted, self.endpoint, "its answer names no commit")
        return info.sha, {file.path: file for file in files}

    def _prepare(self, wanted: HubName, commit: str, choice: Choice, report: Report) -> Counter:
        """Check that there is room, say what is coming, and start to count its bytes."""
        missing = self.cache.missing(wanted, commit, choice)
        total = sum(file.size or 0 for file in missing)
        require_space(self.cache.folder, total, f"The download of {wanted}")
        self.cache.begin(wanted, commit, choice)
        if missing:
            size = size_in_words(total)
            report.notice(f"Downloading {wanted.repo_id} from {self.endpoint}: {len(missing)} files, {size}.")
        return Counter(lambda done: report.progress(str(wanted), min(done, total), total))

    def _take(self, wanted: HubName, commit: str, file: RemoteFile, counter: Counter | None = None) -> Path:
        """One file of the snapshot, downloaded unless it is there, and checked.

        A cached copy that fails the check is fetched once more, a fresh one is refused; neither stays.
        """
        was_there = (self.cache.snapshot(wanted, commit) / file.path).exists()
        for _ in range(2 if was_there else 1):
            path = self._download(wanted, commit, file, counter or Counter(lambda _: None))
            if file.matches(path):
                return path
            self.cache.discard(path)
        raise ResolveError(
            f"{file.path} of {wanted.repo_id} arrived damaged: its hash is not the one that the Hub "
            "announces, so it was removed; try again."
        )

    def _download(self, wanted: HubName, commit: str, file: RemoteFile, counter: Counter) -> Path:
        from huggingface_hub import hf_hub_download

        bar: Any = bar_class(counter)  # not a tqdm, but all of it that is asked for
        path = hf_hub_download(
            wanted.repo_id,
            file.path,
            revision=commit,
            cache_dir=self.cache.folder,
            endpoint=self.endpoint,
            tqdm_class=bar,
        )
        return Path(path)


def _remote_file(sibling: Any) -> RemoteFile:
    lfs = sibling.lfs
    return RemoteFile(
        path=sibling.rfilename,
        size=lfs.size if lfs is not None else sibling.size,
        sha256=lfs.sha256 if lfs is not None else None,
        git_sha1=sibling.blob_id,
    )
