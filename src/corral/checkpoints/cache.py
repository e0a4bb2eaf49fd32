"""Where downloaded files live, and how a file appears there: whole, or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from corral.errors import ResolveError

_CHUNK = 1 << 20
_STALE_AFTER = 24 * 3600  # seconds; nothing that is still being written lies untouched for a day


def cache_folder() -> Path:
    """Corral's own cache: `CORRAL_CACHE`, else `$XDG_CACHE_HOME/corral`, else `~/.cache/corral`."""
    if named := os.environ.get("CORRAL_CACHE"):
        return Path(named).expanduser()
    return _user_cache() / "corral"


def hub_cache_folder() -> Path:
    """The cache that every Hugging Face tool shares, by the variables that `huggingface_hub` documents.

    They are read at each call, while `huggingface_hub` reads them once, when it is imported.
    """
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if named := os.environ.get(variable):
            return Path(os.path.expandvars(named)).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(os.path.expandvars(home)).expanduser() / "hub"
    return _user_cache() / "huggingface" / "hub"


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def size_in_words(count: int) -> str:
    """A number of bytes as a person writes it, in powers of ten: `98.4 MB`."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin when the disk that holds `folder` has less than `needed` bytes free."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResolveError(
            f"{what} needs {size_in_words(needed)} on the disk of {folder}, which has only "
            f"{size_in_words(free)} free: make room, or point CORRAL_CACHE and HF_HOME at a larger disk."
        )


def explain_disk_error(error: BaseException, path: Path | str) -> ResolveError | None:
    """The sentence for a failed write to `path`, or None if the error is of another kind."""
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT) or "no space left on device" in str(error).lower():
        return ResolveError(
            f"The disk is full: {path} could not be written, and its partial copy was removed; make room "
            "or point CORRAL_CACHE and HF_HOME at a larger disk."
        )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ResolveError(
            f"The cache cannot be written at {path} ({os.strerror(code)}): point CORRAL_CACHE and HF_HOME "
            "at a folder of yours."
        )
    return None


@contextmanager
def disk_errors(path: Path | str) -> Iterator[None]:
    """Turn a full or read-only disk into a sentence that names `path`."""
    try:
        yield
    except OSError as error:
        explained = explain_disk_error(error, error.filename or path)
        if explained is None:
            raise
        raise explained from error


@contextmanager
def whole_file(destination: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears at `destination` only when the block ends without an error.

    It is written beside its destination, flushed to the disk and renamed, so two processes that write the
    same file do not disturb each other: the last one to finish wins.
    """
    with disk_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{destination.name}.", dir=destination.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)  # mkstemp makes private files; a cache may be shared
            Path(name).replace(destination)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def work_folder() -> Iterator[Path]:
    """A temporary folder on the cache's own disk, removed at the end.

    Folders that a killed process left behind more than a day ago are removed first.
    """
    root = cache_folder() / "tmp"
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        sweep(root.iterdir())
        temporary = tempfile.TemporaryDirectory(dir=root, ignore_cleanup_errors=True)
    with temporary as folder:
        yield Path(folder)


def sweep(leftovers: Iterator[Path]) -> None:
    """Remove those of the files and folders that nobody has touched for a day."""
    for path in leftovers:
        try:
            stale = time.time() - path.lstat().st_mtime > _STALE_AFTER
        except FileNotFoundError:  # another process was quicker
            continue
        if stale and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif stale:
            path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def git_blob_sha1_of(path: Path) -> str:
    """The name that git gives to a file's content: SHA-1 over `blob <size>\\0` and the bytes."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
