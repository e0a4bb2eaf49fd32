"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from corral.checkpoints.new_folder import require_space
from corral.errors import CheckpointError


def require_new_file(out: Path, suffix: str) -> None:
    """Raises CheckpointError where `out` exists, or does not end in `suffix`."""
    if out.suffix != suffix:
        raise CheckpointError(f"{out} must end in {suffix}: that is how others know what it is")
    if out.exists() or out.is_symlink():
        raise CheckpointError(f"{out} exists; choose another")


@contextmanager
def new_file(out: Path, num_bytes: int) -> Iterator[Path]:
    """A file beside `out` to write some bytes into; it becomes `out` when the block ends without an error.

    Raises:
        CheckpointError: `out` has come to exist, or the disk has no room.
    """
    partial: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent)
        os.close(handle)
        partial = Path(name)
        require_space(num_bytes, out.parent)
        yield partial
        partial.chmod(0o644)
        require_new_file(out, out.suffix)
        partial.rename(out)
    except OSError as error:
        raise CheckpointError(f"{out} could not be written: {error.strerror or error}") from None
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
