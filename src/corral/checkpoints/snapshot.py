"""Which files of a folder or of a Hub repository make a model, and whether all of them are there.

Three layouts hold a model: Hugging Face (`config.json` and `*.safetensors`), Meta (`params.json` and
`consolidated.*.pth`, often in a folder `original/`), and one GGUF file. Where a repository has several,
safetensors win over Meta's files and those over GGUF, and nothing else is fetched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from corral.checkpoints.cache import git_blob_sha1_of, sha256_of
from corral.checkpoints.names import HubName
from corral.errors import CheckpointError, ResolveError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_BESIDE_WEIGHTS = (
    "config.json",
    "generation_config.json",
    "*quant*config*.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*.jinja",
)
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_META_FOLDERS = ("original/", "")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class RemoteFile:
    """A file as the Hub lists it: large ones carry a SHA-256, small ones only git's hash of the content."""

    path: str
    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None

    def matches(self, local: Path) -> bool:
        """Whether the file at `local` has the content that the Hub announced."""
        if self.size is not None and local.stat().st_size != self.size:
            return False
        if self.sha256 is not None:
            return sha256_of(local) == self.sha256
        return self.git_sha1 is None or git_blob_sha1_of(local) == self.git_sha1


@dataclass(frozen=True)
class Choice:
    """The files to fetch, and what to open then: `""` for the snapshot's folder, or a path inside it."""

    files: tuple[RemoteFile, ...]
    target: str


Listing = Mapping[str, RemoteFile]


def choose_files(listing: Listing, wanted: HubName, read: Callable[[RemoteFile], Path]) -> Choice:
    """The files of a repository that make the model `wanted`.

    `read` fetches one file, for a sharded model's index. Raises ResolveError where the repository holds no
    weights that can be read, has several GGUF files and none is named, or lacks a shard that its index names.
    """
    ggufs = first_parts(listing)
    if wanted.filename is not None:
        return _gguf_files(listing, wanted, wanted.filename)
    if weights := _safetensors(listing, wanted, read):
        beside = [file for path, file in listing.items() if _belongs_beside_weights(path)]
        return Choice((*beside, *weights), "")
    for folder in _META_FOLDERS:
        if files := _meta_files(listing, folder):
            return Choice(files, folder.rstrip("/"))
    if len(ggufs) == 1:
        return _gguf_files(listing, wanted, ggufs[0])
    if ggufs:
        raise ResolveError(f"{wanted.repo_id} has {len(ggufs)} GGUF files.{_offer(wanted, ggufs)}")
    raise ResolveError(
        f"{wanted.repo_id} has no weights that can be read: no *.safetensors, no consolidated.*.pth with "
        "params.json, and no .gguf file."
    )


def _belongs_beside_weights(path: str) -> bool:
    depth = path.count("/")  # a `*` would run across folders
    return any(fnmatchcase(path, p) for p in _BESIDE_WEIGHTS if p.count("/") == depth)


def _gguf_files(listing: Listing, wanted: HubName, filename: str) -> Choice:
    parts = gguf_parts(filename)
    for part in parts:
        if part not in listing:
            offer = _offer(wanted, first_parts(listing))
            raise ResolveError(f"{wanted.repo_id} has no file {part!r}.{offer}")
    return Choice(tuple(listing[part] for part in parts), parts[0])


def gguf_parts(filename: str) -> list[str]:
    """All files of a GGUF model, from the name of any; split ones end in `-00001-of-00003.gguf` and so on."""
    match = _PART.search(filename)
    if match is None:
        return [filename]
    stem, count = filename[: match.start()], int(match[1])
    return [f"{stem}-{part:05d}-of-{count:05d}.gguf" for part in range(1, count + 1)]


def first_parts(names: Iterable[str]) -> list[str]:
    """The GGUF models among file names, sorted, each by the name of its first file."""
    return sorted({gguf_parts(name)[0] for name in names if name.endswith(".gguf")})


def _offer(wanted: HubName, ggufs: list[str]) -> str:
    if not ggufs:
        return " It has no GGUF files."
    revision = f"@{wanted.revision}" if wanted.revision else ""
    example = f"{wanted.short_name or wanted.repo_id}{revision}:{ggufs[0]}"
    return f" Choose one of {', '.join(ggufs)} with a colon, as in {example}."


def _safetensors(listing: Listing, wanted: HubName, read: Callable[[RemoteFile], Path]) -> list[RemoteFile]:
    """The single file; else the index with exactly the shards that it names; else all there are."""
    if SINGLE in listing:
        return [listing[SINGLE]]
    if INDEX not in listing:
        return [file for path, file in listing.items() if path.endswith(".safetensors") and "/" not in path]
    shards = shards_named_by(read(listing[INDEX]))
    missing = [shard for shard in shards if shard not in listing]
    if missing:
        raise ResolveError(
            f"{wanted.repo_id} is incomplete on the Hub: {INDEX} names {missing[0]!r}, which is not there."
        )
    return [listing[INDEX], *(listing[shard] for shard in shards)]


def _meta_files(listing: Listing, folder: str) -> tuple[RemoteFile, ...]:
    shards = [file for path, file in listing.items() if fnmatchcase(path, f"{folder}consolidated.*.pth")]
    beside = [
        listing[path] for name in ("params.json", "tokenizer.model") if (path := folder + name) in listing
    ]
    return (*beside, *shards) if shards and f"{folder}params.json" in listing else ()


def shards_named_by(index: Path) -> list[str]:
    """The shard files that a safetensors index names, in order, each once.

    Raises CheckpointError where the index cannot be read.
    """
    try:
        shards = json.loads(index.read_bytes())["weight_map"].values()
        return sorted({str(shard) for shard in shards})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is no safetensors index: it must be JSON with an object 'weight_map'."
        ) from error


def whole_model(folder: Path) -> bool:
    """Whether a snapshot that some other program fetched holds a whole model in Hugging Face's layout.

    It takes the configuration, a tokenizer and every shard. Of Meta's layout and of GGUF repositories the
    folder alone does not tell how many files belong to it, so those count as incomplete.
    """
    if not (folder / "config.json").exists() or not any((folder / name).exists() for name in _TOKENIZERS):
        return False
    if (folder / SINGLE).exists():
        return True
    try:
        return all((folder / shard).exists() for shard in shards_named_by(folder / INDEX))
    except (OSError, CheckpointError):  # no index, or a broken one
        return False


def weights_in(path: Path) -> Path:
    """What to open at a local path: the file itself, the folder, its `original/`, or its only GGUF file.

    Raises CheckpointError for a folder in which none of the three layouts is found.
    """
    if not path.is_dir():
        return path
    if any(path.glob("*.safetensors")) or (path / INDEX).exists():
        return path
    for folder in (path, path / "original"):
        if any(folder.glob("consolidated.*.pth")):
            return folder
    ggufs = first_parts(gguf.name for gguf in path.glob("*.gguf"))
    if len(ggufs) == 1:
        return path / ggufs[0]
    if ggufs:
        raise CheckpointError(
            f"The folder {path} holds {len(ggufs)} GGUF files: name one of {', '.join(ggufs)}."
        )
    raise CheckpointError(
        f"The folder {path} holds no weights: expected *.safetensors, consolidated.*.pth or a .gguf file."
    )


def config_in(path: Path) -> Path | None:
    """What describes the network: `config.json`, the folder of `params.json`, or the only GGUF file."""
    if not path.is_dir():
        return path
    if (path / "config.json").exists():
        return path / "config.json"
    for folder in (path, path / "original"):
        if (folder / "params.json").exists():
            return folder
    ggufs = first_parts(gguf.name for gguf in path.glob("*.gguf"))
    return path / ggufs[0] if len(ggufs) == 1 else None
