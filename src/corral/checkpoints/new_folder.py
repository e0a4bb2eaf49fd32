"""Folders that appear whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from corral.errors import CheckpointError


def require_new(out: Path) -> None:
    """Raises CheckpointError where `out` exists and is not an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is not an empty folder; choose another")


@contextmanager
def new_folder(out: Path, num_bytes: int) -> Iterator[Path]:
    """A folder beside `out` to write some bytes into; it becomes `out` when the block ends without an error.

    Raises:
        CheckpointError: `out` exists and is not an empty folder, or the disk has no room.
    """
    require_new(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise _not_written(out, error) from None
    try:
        require_space(num_bytes, out.parent)
        yield partial
        partial.chmod(0o755)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise _not_written(out, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_space(num_bytes: int, folder: Path) -> None:
    """Raises CheckpointError where the disk of a folder has no room for some bytes."""
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise CheckpointError(
            f"{folder} has {free / 1e9:.1f} GB free, but the weights take {num_bytes / 1e9:.1f} GB; "
            "free some space or choose another place"
        )


def _not_written(out: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{out} could not be written: {error.strerror or error}")
