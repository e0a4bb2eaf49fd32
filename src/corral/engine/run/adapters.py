"""LoRA adapters (Hu et al., 2021, arXiv:2106.09685) that lie beside the model: many of them in one batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from corral.checkpoints.adapter_config import ADAPTER_CONFIG, AdapterConfig
from corral.checkpoints.adapter_reader import LowRank, read_adapter
from corral.errors import CheckpointError, RequestError
from corral.kernels.packed_llama import PackedLlama
from corral.model.llama import Llama
from corral.model.project import Project, plain


@dataclass(frozen=True, eq=False)
class Adapter:
    """A loaded adapter: for each linear layer A [r, in] and B [out, r], the scale multiplied into B."""

    serial: int
    layers: Mapping[nn.Module, tuple[Tensor, Tensor]]

    @property
    def num_bytes(self) -> int:
        return sum(a.nbytes + b.nbytes for a, b in self.layers.values())


def adapter_folders(adapters: Mapping[str, Path | str] | None) -> dict[str, Path]:
    """The folders of adapters by their names, as callers give them; their configurations have been read.

    Raises:
        RequestError: `adapters` is no such mapping.
        CheckpointError: a folder has no configuration, or that of something other than plain LoRA.
    """
    if adapters is not None and not isinstance(adapters, Mapping):
        raise RequestError(f"adapters is {adapters!r}; it must map names to PEFT folders")
    folders = {name: _folder(name, path) for name, path in (adapters or {}).items()}
    for folder in folders.values():
        AdapterConfig.read(folder / ADAPTER_CONFIG)
    return folders


def _folder(name: object, path: object) -> Path:
    if not isinstance(name, str) or not name.strip():
        raise RequestError(f"adapter name is {name!r}; it must be a text that is not empty")
    if not isinstance(path, str | Path):
        raise RequestError(f"adapter {name!r} is {path!r}; it must be the path of a PEFT folder")
    return Path(path).expanduser()


class AdapterSet:
    """The adapters that are loaded for one model, by name.

    Adapters may be loaded and unloaded from any thread, also while a batch is running: a `Project` keeps
    what it began with. That no waiting request uses an adapter that is unloaded is the engine's business.
    """

    def __init__(self, model: Llama | PackedLlama) -> None:
        self._model = model
        self._network = model if isinstance(model, Llama) else model.network
        self._adapters: dict[str, Adapter] = {}
        self._serials = count(1)
        self._lock = Lock()

    def load(self, name: str, path: Path | str) -> None:
        """Reads the PEFT folder at `path` and keeps its weights in the model's type, on its device.

        Raises:
            RequestError: the name is empty or taken.
            CheckpointError: the adapter cannot be read, is not plain LoRA, or is for another model. Nothing
                has changed then.
        """
        folder = _folder(name, path)
        self._require_free(name)
        layers = {
            self._network.get_submodule(module): self._place(folder, module, added)
            for module, added in read_adapter(folder, self._network, self._model.get_parameter).items()
        }
        with self._lock:
            self._require_free(name)
            self._adapters[name] = Adapter(next(self._serials), layers)

    def unload(self, name: str) -> None:
        """Forgets an adapter.

        Raises:
            RequestError: no adapter of this name is loaded.
        """
        with self._lock:
            self.find(name)
            del self._adapters[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that are loaded, in the order of loading."""
        return tuple(self._adapters)

    @property
    def num_bytes(self) -> int:
        """Memory that the loaded adapters take."""
        return sum(adapter.num_bytes for adapter in tuple(self._adapters.values()))

    def salt(self, name: str | None) -> bytes:
        """What keeps the cached keys and values of one adapter from all others: 8 bytes, or none without one.

        A name that is loaded again has another salt: its weights may be others.

        Raises:
            RequestError: no adapter of this name is loaded.
        """
        return b"" if name is None else self.find(name).serial.to_bytes(8, "big")

    def project(self, runs: Iterable[tuple[str | None, int]]) -> Project:
        """How linear layers are applied to a flat batch.

        `runs` tell the rows in order: an adapter's name, or None, and for how many rows it holds.

        Raises:
            RequestError: no adapter of a name is loaded.
        """
        ranges: dict[str, list[range]] = {}
        end = 0
        for name, length in runs:
            start, end = end, end + length
            if name is None or length == 0:
                continue
            of_name = ranges.setdefault(name, [])
            if of_name and of_name[-1].stop == start:
                start = of_name.pop().start
            of_name.append(range(start, end))
        if not ranges:
            return plain
        device = self._model.device
        return _Adapted(end, [(self.find(n).layers, _rows(of_name, device)) for n, of_name in ranges.items()])

    def _require_free(self, name: str) -> None:
        if name in self._adapters:
            raise RequestError(f"adapter {name!r} is loaded already; unload it first or choose another name")

    def find(self, name: str) -> Adapter:
        """An adapter that is loaded.

        Raises:
            RequestError: no adapter of this name is loaded.
        """
        adapter = self._adapters.get(name)
        if adapter is None:
            loaded = ", ".join(map(repr, self.names)) or "none"
            raise RequestError(f"adapter {name!r} is not loaded; loaded are: {loaded}")
        return adapter

    def _place(self, path: Path, module: str, added: LowRank) -> tuple[Tensor, Tensor]:
        """The matrices as they are applied: copies, for the file may change while the adapter is loaded."""
        a = added.a.to(self._model.device, self._model.dtype, copy=True)
        b = (added.b.float() * added.scale).to(self._model.device, self._model.dtype)
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            raise CheckpointError(
                f"{path}: {module} has numbers or a scale (lora_alpha) too large for {self._model.dtype}"
            )
        return a.contiguous(), b.contiguous()


class _Adapted:
    """Linear layers with adapters on some of the rows; the arithmetic of the other rows is untouched."""

    def __init__(
        self,
        num_rows: int,
        groups: Sequence[tuple[Mapping[nn.Module, tuple[Tensor, Tensor]], slice | Tensor]],
    ) -> None:
        self.num_rows = num_rows
        self.groups = groups

    def __call__(self, linear: nn.Module, x: Tensor) -> Tensor:
        assert x.shape[0] == self.num_rows, "the runs tell of every row"
        output = plain(linear, x)
        for layers, rows in self.groups:
            pair = layers.get(linear)
            if pair is None:
                continue
            added = F.linear(F.linear(x[rows], pair[0]), pair[1])
            # Both ways round the sum once, so that an adapter's rows do not depend on where they lie.
            if isinstance(rows, slice):
                output[rows].add_(added)
            else:
                output.index_add_(0, rows, added)
        return output


def _rows(ranges: Sequence[range], device: torch.device) -> slice | Tensor:
    """One run is a slice, which costs no copy; several are a list of row numbers."""
    if len(ranges) == 1:
        return slice(ranges[0].start, ranges[0].stop)
    return torch.tensor(list(chain.from_iterable(ranges)), device=device)
