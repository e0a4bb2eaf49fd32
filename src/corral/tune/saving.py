"""Checkpoints: all that a run needs to go on as if it had never stopped.

checkpoints/step-000120/parameters.safetensors   what is trained
                        optimizer.safetensors    its moments
                        rng-00000.safetensors    the random number generators, of each process
                        state.json               where the run stands, and which run it is
            best.json                            the one with the lowest evaluation loss, for people

A folder with such a name is whole. While it is written it has another, and so it has while it is deleted.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from corral.tune.adamw import local
from corral.tune.checkpoint_files import STATE, VERSION, damaged, described, read_state, sync, what_is_damaged
from corral.tune.errors import TuneError
from corral.tune.feed import Position
from corral.tune.identity import what_differs
from corral.tune.matching import require_match
from corral.tune.rng import rng_state, set_rng_state
from corral.tune.tensor_store import Groups, SafetensorsStore, TensorStore, read_tensors

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Attributes:
        step: optimizer steps that are done.
        position: where the feed stands.
        counters: what else the loop counts, such as tokens; numbers by name.
    """

    step: int
    position: Position
    counters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Best:
    """The checkpoint with the lowest evaluation loss."""

    step: int
    loss: float


class Stateful(Protocol):
    """An optimizer."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class Processes(Protocol):
    """Those that save together."""

    @property
    def rank(self) -> int: ...

    def agree(self, trouble: str | None) -> str | None:
        """Waits for all; gives the trouble of the first that has any."""
        ...


class OneProcess:
    """Nobody to wait for."""

    rank = 0

    def agree(self, trouble: str | None) -> str | None:
        return trouble


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: where they lie.
        identity: which run this is, as plain data; only checkpoints of the same are gone on with.
        keep: how many of the last ones stay.
        keep_best: whether that with the lowest evaluation loss stays too.
        device: what the run computes on, for its random numbers.
        store: how tensors lie in a checkpoint.
        processes: those that save together; each calls the same methods at the same time.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        *,
        keep: int = 2,
        keep_best: bool = True,
        device: torch.device = _CPU,
        store: TensorStore | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.folder, self._identity = folder, json.loads(json.dumps(identity))
        self._keep, self._keep_best, self._device = keep, keep_best, device
        self._store = store or SafetensorsStore()
        self._processes = processes or OneProcess()

    def steps(self) -> list[int]:
        """The steps of all whole checkpoints, the last one last."""
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        found = (re.fullmatch(r"step-(\d{6,})", name) for name in names)
        return sorted(int(match[1]) for match in found if match)

    def latest(self) -> int | None:
        """The step of the last checkpoint, if there is one."""
        return max(self.steps(), default=None)

    def best(self) -> Best | None:
        """The checkpoint with the lowest evaluation loss, if one was evaluated."""
        losses = ((self._loss(step), step) for step in self.steps())
        loss, step = min(((loss, step) for loss, step in losses if loss is not None), default=(0.0, 0))
        return Best(step, loss) if step else None

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def save(
        self,
        standing: Standing,
        parameters: Mapping[str, Tensor],
        optimizer: Stateful,
        loss: float | None = None,
    ) -> Path:
        """Writes a checkpoint, and then deletes those that are kept no longer.

        Args:
            loss: of the evaluation at this step, where there was one.

        Raises:
            TuneError: it could not be written; the checkpoints before it are as they were.
        """
        groups = {"parameters": parameters, "optimizer": optimizer.state_dict()}
        partial = self.folder / f".step-{standing.step:06d}.partial"
        try:
            self._attempt(standing.step, lambda: self._begin(partial, groups), alone=True)
            self._attempt(standing.step, lambda: self._write(partial, groups))
            self._attempt(standing.step, lambda: self._finish(partial, standing, loss), alone=True)
        finally:
            if self._processes.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
        return self.path(standing.step)

    def restore(self, step: int, parameters: Mapping[str, Tensor], optimizer: Stateful) -> Standing:
        """Sets parameters, optimizer and the random number generators to those of a checkpoint.

        Raises:
            TuneError: the checkpoint is damaged, or of another run; nothing has changed then.
        """
        folder = self.path(step)
        state = read_state(folder)
        if other := what_differs(state["identity"], self._identity):
            raise TuneError(
                f"{folder} belongs to another run: {other}; go on with the same, or choose another output"
            )
        self._require_whole(folder, state["files"])
        groups, rng = self._read(folder, {"parameters": parameters, "optimizer": optimizer.state_dict()})
        require_match(parameters, groups["parameters"], str(folder))
        optimizer.load_state_dict(groups["optimizer"])
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(groups["parameters"][name])
        set_rng_state(rng, self._device)
        return Standing(state["step"], Position(**state["position"]), state["counters"])

    @property
    def _rng_file(self) -> str:
        return f"rng-{self._processes.rank:05d}.safetensors"

    def _require_whole(self, folder: Path, files: Mapping[str, Any]) -> None:
        trouble = what_is_damaged(folder, files) if self._processes.rank == 0 else None
        if trouble := self._processes.agree(trouble):
            raise TuneError(trouble)

    def _read(self, folder: Path, wanted: Groups) -> tuple[Groups, dict[str, Tensor]]:
        """The groups of tensors, and the random number generators of this process."""
        groups: Groups = {}
        rng: dict[str, Tensor] = {}
        trouble = None
        try:
            groups, rng = self._store.read(folder, wanted), read_tensors(folder / self._rng_file)
        except (OSError, SafetensorError) as error:
            trouble = damaged(folder, str(error))
        if trouble := self._processes.agree(trouble):
            raise TuneError(trouble)
        return groups, rng

    def _attempt(self, step: int, work: Callable[[], None], *, alone: bool = False) -> None:
        """Does a part of saving, in the first process alone or in each; a trouble of one is that of all."""
        trouble = None
        if self._processes.rank == 0 or not alone:
            try:
                work()
            except (OSError, SafetensorError) as error:
                trouble = str(getattr(error, "strerror", None) or error)
        if trouble := self._processes.agree(trouble):
            last = self.latest()
            kept = (
                "no earlier one is kept"
                if last is None
                else f"{self.path(last).name} is whole: go on from it"
            )
            raise TuneError(f"{self.path(step)} could not be written: {trouble}; {kept} when there is room")

    def _begin(self, partial: Path, groups: Groups) -> None:
        """Makes the folder to write into, where there is room."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".step-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        num_bytes = sum(local(tensor).nbytes for tensors in groups.values() for tensor in tensors.values())
        free = shutil.disk_usage(self.folder).free
        if num_bytes > free:
            raise OSError(f"the disk has {free / 1e9:.1f} GB free, and it takes {num_bytes / 1e9:.1f} GB")
        partial.mkdir()

    def _write(self, partial: Path, groups: Groups) -> None:
        if self._store.spread or self._processes.rank == 0:
            self._store.write(partial, groups)
        save_file(rng_state(self._device), partial / self._rng_file)

    def _finish(self, partial: Path, standing: Standing, loss: float | None) -> None:
        """Says what the folder holds, makes it last and gives it its name; then deletes others."""
        state = {
            "version": VERSION,
            "step": standing.step,
            "position": asdict(standing.position),
            "counters": dict(standing.counters),
            "loss": loss if loss is not None and math.isfinite(loss) else None,
            "identity": self._identity,
            "files": {
                str(file.relative_to(partial)): described(file, summed=not self._store.spread)
                for file in sorted(partial.rglob("*"))
                if file.is_file()
            },
        }
        (partial / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        for path in (*partial.rglob("*"), partial):
            sync(path)
        path = self.path(standing.step)
        if path.exists():
            self._remove(standing.step)
        partial.rename(path)
        sync(self.folder)
        self._prune(standing.step)

    def _prune(self, current: int) -> None:
        """Deletes what is kept no longer. What comes after the current step is of a time that is no more."""
        best = self.best() if self._keep_best else None
        before = [step for step in self.steps() if step <= current]
        kept = {*before[-self._keep :], *([best.step] if best is not None and best.step <= current else [])}
        for step in self.steps():
            if step not in kept:
                self._remove(step)
        best = self.best()
        if best is not None:
            note = self.folder / ".best.json"
            note.write_text(json.dumps({"checkpoint": self.path(best.step).name, **asdict(best)}) + "\n")
            note.replace(self.folder / "best.json")

    def _remove(self, step: int) -> None:
        """Deletes a checkpoint, which has no name of one while that lasts."""
        gone = self.folder / f".{self.path(step).name}.removed"
        self.path(step).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _loss(self, step: int) -> float | None:
        try:
            loss: float | None = read_state(self.path(step))["loss"]
        except TuneError:
            return None
        return loss
