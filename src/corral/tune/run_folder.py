"""The folder of a run: its settings, what it measured, and what it can go on from.

config.yaml        all settings
environment.json   versions and hardware
metrics.jsonl      a line for each step that is logged
loss.png           the losses over the steps
README.md          the model card
checkpoints/       what the run can go on from
lock               held while a run works here
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from corral.tune.config import RunConfig
from corral.tune.config_file import to_yaml
from corral.tune.curve import draw_losses
from corral.tune.errors import TuneError
from corral.tune.identity import settings_of, what_differs
from corral.tune.metrics_file import MetricsFile

_CONFIG, _LOCK = "config.yaml", "lock"
_NOBODYS = {_LOCK, "lost+found"}


class RunFolder:
    """Holds the folder of a run; use it as a context manager.

    Args:
        path: the folder; it is made where there is none.
        config: the run.
        resume: go on with the run that is there, if one is.

    Attributes:
        metrics: what the run has measured.
        checkpoints: where its checkpoints go.
        has_begun: whether a run was there before.
        changed: in words, which settings this run changes of those that it may change, such as its length.

    Raises:
        TuneError: the folder holds another run or other files, somebody works on it, or it cannot be written.
    """

    def __init__(self, path: Path, config: RunConfig, *, resume: bool = False) -> None:
        self.path, self.checkpoints = path, path / "checkpoints"
        self.metrics = MetricsFile(path / "metrics.jsonl")
        self.has_begun, self.changed = False, ""
        self._held = ExitStack()
        try:
            self._look(resume)
            path.mkdir(parents=True, exist_ok=True)
            self._lock()
            self._look(resume)  # again: the one who had the lock may have begun a run
            self._check(config)
            self._write(_CONFIG, to_yaml(config))
        except BaseException as error:
            self._held.close()
            if isinstance(error, OSError):
                raise self._not_written(error) from None
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not self.has_begun and not self._has_results:
            for name in (_CONFIG, "environment.json"):  # what was refused is no run
                (self.path / name).unlink(missing_ok=True)
        self._held.close()

    @property
    def _has_results(self) -> bool:
        return bool(self.metrics.rows()) or self.checkpoints.is_dir()

    def write_environment(self, environment: Mapping[str, Any]) -> str:
        """Keeps the environment; one that the run began in stays below "before" if it was another.

        Gives in words what differs from the last one: the same numbers are not to be expected then.
        """
        file = self.path / "environment.json"
        before: dict[str, Any] = {}
        if self.has_begun and file.is_file():
            try:
                before = json.loads(file.read_text(encoding="utf-8"))
            except ValueError:
                before = {}
        earlier = before.pop("before", []) if isinstance(before, dict) else []
        other = what_differs(before, environment) if before else ""
        kept = [*earlier, before] if other else earlier
        self._write("environment.json", _as_json({**environment, **({"before": kept} if kept else {})}))
        return other

    def draw(self, title: str) -> None:
        """Draws the losses up to now; does nothing where Pillow is not installed.

        Raises:
            TuneError: the picture could not be written.
        """
        try:
            draw_losses(self.metrics.rows(), self.path / "loss.png", title)
        except OSError as error:
            raise self._not_written(error) from None

    def write_card(self, card: str) -> None:
        """Writes README.md."""
        self._write("README.md", card)

    def _look(self, resume: bool) -> None:
        """Refuses a folder that this run may not work in."""
        if self.path.exists() and not self.path.is_dir():
            raise TuneError(f"{self.path} is a file; choose another output")
        self.has_begun = (self.path / _CONFIG).is_file()
        if self.has_begun and not resume:
            raise TuneError(f"{self.path} holds a run; go on with it by --resume, or choose another output")
        names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        others = {name for name in names - _NOBODYS if not name.startswith(".")}
        if others and not self.has_begun:
            raise TuneError(f"{self.path} holds other files, such as {min(others)}; choose another output")

    def _lock(self) -> None:
        lock = self._held.enter_context((self.path / _LOCK).open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TuneError(
                f"{self.path} is in use by another run; wait for it, or choose another output"
            ) from None

    def _check(self, config: RunConfig) -> None:
        """Refuses to go on with other settings than those that are kept, and notes those that may change."""
        if not self.has_begun:
            return
        file = self.path / _CONFIG
        try:
            kept = RunConfig.model_validate_json(json.dumps(yaml.safe_load(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError, yaml.YAMLError):
            raise TuneError(f"{file} is damaged, or of another version; choose another output") from None
        if other := what_differs(settings_of(kept), settings_of(config)):
            raise TuneError(
                f"{self.path} holds another run: {other}; go on with the same, or choose another output"
            )
        before, now = kept.to_dict(), config.to_dict()
        self.changed = what_differs({**before, "output": now["output"]}, now)

    def _write(self, name: str, text: str) -> None:
        """Writes a file, which is whole at any time."""
        partial = self.path / f".{name}.partial"
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.path / name)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise self._not_written(error) from None

    def _not_written(self, error: OSError) -> TuneError:
        return TuneError(f"{self.path} could not be written: {error.strerror or error}")


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
