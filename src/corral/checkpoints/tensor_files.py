"""The safetensors files of a folder: which holds which tensor, and the tensors themselves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from corral.checkpoints.checkpoint import read_json
from corral.checkpoints.snapshot import INDEX, SINGLE
from corral.errors import CheckpointError


class TensorFiles:
    """The tensors of a folder. They are memory-mapped: they cost memory only once they are used.

    Attributes:
        where: the file of each tensor, in the order of the files.

    Raises:
        CheckpointError: a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.where = _files_of_tensors(folder)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, each once."""
        return tuple(dict.fromkeys(self.where.values()))

    @property
    def storage(self) -> dict[str, int]:
        """How many tensors are stored in which type."""
        counts: Counter[str] = Counter()
        for file in self.paths:
            counts.update(entry["dtype"] for name, entry in _header(file).items() if name != "__metadata__")
        return dict(counts)

    def each(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """All tensors whose names begin so, file by file; a file is let go of before the next is opened."""
        names_of: dict[Path, list[str]] = {}
        for name, file in self.where.items():
            if name.startswith(prefix):
                names_of.setdefault(file, []).append(name)
        for names in names_of.values():
            with self.opened() as get:
                for name in names:
                    yield name, get(name)

    @contextmanager
    def opened(self) -> Iterator[Callable[[str], Tensor]]:
        """A function that gives a tensor by its name; files stay open until the end of the block."""
        with ExitStack() as stack:
            files: dict[Path, tuple[Any, set[str]]] = {}

            def get(name: str) -> Tensor:
                path = self.where[name]
                if path not in files:
                    file = stack.enter_context(_open(path))
                    files[path] = file, set(file.keys())
                file, present = files[path]
                if name not in present:
                    raise CheckpointError(f"{path} does not hold {name}, which {INDEX} says it does")
                tensor: Tensor = file.get_tensor(name)
                return tensor

            yield get


def _files_of_tensors(folder: Path) -> dict[str, Path]:
    """Which file holds which tensor."""
    index = folder / INDEX
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index} has no weight_map; download it again")
        for name in dict.fromkeys(weight_map.values()):
            if not (folder / str(name)).is_file():
                raise CheckpointError(
                    f"{folder / str(name)} is missing, but {INDEX} names it; download it again"
                )
        return {tensor: folder / name for tensor, name in weight_map.items()}
    files = [folder / SINGLE] if (folder / SINGLE).is_file() else sorted(folder.glob("*.safetensors"))
    return {name: file for file in files for name in _header(file) if name != "__metadata__"}


def _header(file: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: name -> dtype, shape, offsets.

    The format: eight bytes of header length, the header, the data (safetensors' README).
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if 0 < length < file.stat().st_size else None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise _damaged(file)
    return header


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError):
        raise _damaged(file) from None


def _damaged(file: Path) -> CheckpointError:
    return CheckpointError(f"{file} is truncated or is not a safetensors file; download it again")
