"""How the tensors of a checkpoint lie in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from corral.tune.adamw import local

Groups = Mapping[str, Mapping[str, Tensor]]
"""Tensors by name, in groups such as "parameters" and "optimizer"."""


class TensorStore(Protocol):
    """Writes tensors into a folder, and reads them again, bit for bit.

    Attributes:
        spread: whether each process writes its part of them. Without, the first writes all.
    """

    @property
    def spread(self) -> bool: ...

    def write(self, folder: Path, groups: Groups) -> None:
        """Writes all tensors.

        Raises:
            OSError, SafetensorError: it could not.
        """
        ...

    def read(self, folder: Path, groups: Groups) -> Groups:
        """The tensors that were written. Those given are what is expected; a store may read into them.

        Raises:
            OSError, SafetensorError: a file is missing or damaged.
        """
        ...


class SafetensorsStore:
    """A file for each group, written by one process that has all of each tensor."""

    spread = False

    def write(self, folder: Path, groups: Groups) -> None:
        for group, tensors in groups.items():
            assert all(local(tensor) is tensor for tensor in tensors.values()), "one process has all of them"
            whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
            save_file(whole, folder / f"{group}.safetensors", metadata={"format": "pt"})

    def read(self, folder: Path, groups: Groups) -> Groups:
        return {group: read_tensors(folder / f"{group}.safetensors") for group in groups}


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, mapped: they are read when they are used.

    Raises:
        OSError, SafetensorError: the file is missing or damaged.
    """
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
