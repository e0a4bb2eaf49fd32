"""What is finished of a quantization, kept on disk beside its result, so that it can go on after a kill.

.NAME.quantizing/settings.json               what was asked for
                 tokens.safetensors          the windows of calibration and evaluation
                 layer-00000.safetensors     the tensors of a finished layer, and what it cost
                 lock                        held while somebody works here
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from corral.errors import CheckpointError
from corral.quantizer.errors import QuantizeError

_RESULT = "result"
Tokens = list[list[int]]


class Work:
    """The folder of the finished parts of one result.

    Use it as a context manager. When the block ends the folder stays until `remove`, unless it holds nothing.

    Args:
        out: the result that will be written.
        settings: all that decides what is written, as JSON.
        restart: forget what is finished.

    Raises:
        QuantizeError: somebody works on the same result, or what is finished was made with other settings.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], *, restart: bool = False) -> None:
        self.folder = out.parent / f".{out.name}.quantizing"
        self._held = ExitStack()
        self._out = out
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            if restart:
                self._clear()
            self._check(json.loads(json.dumps(settings)))
        except OSError as error:
            self._held.close()
            raise self._not_written(error) from None
        except QuantizeError:
            self._held.close()
            raise

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *_: object) -> None:
        if not any(self.folder.glob("*.safetensors")):
            self.remove()
        self._held.close()

    def tokens(self) -> tuple[Tokens, Tokens] | None:
        """The windows of calibration and of evaluation that were kept, if they were."""
        file = self.folder / "tokens.safetensors"
        if not file.is_file():
            return None
        try:
            kept = load_file(file)
            return kept["calibration"].tolist(), kept["evaluation"].tolist()
        except (SafetensorError, KeyError):
            raise QuantizeError(f"{file} is damaged; delete it, and the samples are written again") from None

    def keep_tokens(self, calibration: Tokens, evaluation: Tokens) -> None:
        """Keeps windows, which are all of one length within each list."""
        named = {"calibration": torch.tensor(calibration), "evaluation": torch.tensor(evaluation)}
        self._save("tokens.safetensors", named, {})

    @property
    def num_finished(self) -> int:
        """How many layers are kept."""
        return sum(1 for _ in self.folder.glob("layer-*.safetensors"))

    def finished(self, layer: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors of a finished layer, mapped from its file, and its result."""
        file = self._file(layer)
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                result = json.loads(opened.metadata()[_RESULT])
                return {name: opened.get_tensor(name) for name in opened.keys()}, result  # noqa: SIM118
        except (SafetensorError, KeyError, TypeError, ValueError):
            raise QuantizeError(f"{file} is damaged; delete it, and its layer is made again") from None

    def finish(self, layer: int, tensors: Mapping[str, Tensor], result: Mapping[str, Any]) -> None:
        """Keeps a layer; its file appears whole or not at all."""
        self._save(self._file(layer).name, tensors, {_RESULT: json.dumps(result)})

    def remove(self) -> None:
        """Deletes the folder, when the result is there."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:05d}.safetensors"

    def _save(self, name: str, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
        partial = self.folder / f"{name}.partial"
        try:
            save_file(dict(tensors), partial, metadata={"format": "pt", **metadata})
            os.replace(partial, self.folder / name)
        except (OSError, SafetensorError) as error:
            raise self._not_written(error) from None

    def _lock(self) -> None:
        lock = self._held.enter_context((self.folder / "lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise QuantizeError(f"{self._out} is being made by another process; wait for it") from None

    def _clear(self) -> None:
        for file in self.folder.iterdir():
            if file.name != "lock":
                file.unlink()

    def _check(self, settings: dict[str, Any]) -> None:
        file = self.folder / "settings.json"
        if not file.is_file():
            self._clear()
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            os.replace(partial, file)
            return
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            kept = None
        if not isinstance(kept, dict):
            kept = {}
        other = [name for name in settings if kept.get(name) != settings[name]]
        if other or set(kept) != set(settings):
            raise QuantizeError(
                f"{self._out} was begun with another {' and '.join(other) or 'version'}; go on with the "
                f"same, or start anew with --restart ({self.folder})"
            )

    def _not_written(self, error: Exception) -> CheckpointError:
        reason = getattr(error, "strerror", None) or error
        return CheckpointError(
            f"{self.folder} could not be written: {reason}; what is finished stays, and the same command "
            "goes on from there"
        )
