"""Where measures go beside the run folder: TensorBoard, Weights & Biases, trackio."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from corral.checkpoints.report import Report, silent
from corral.tune.errors import TuneError

Measures = Mapping[str, float]


class Reporter(Protocol):
    """Takes the measures of steps."""

    def log(self, step: int, measures: Measures) -> None:
        """Takes measures by name, in the order of steps."""
        ...

    def close(self) -> None:
        """Sees to it that all arrives."""
        ...


def make_reporters(
    to: Sequence[str],
    folder: Path,
    project: str,
    config: Mapping[str, Any],
    step: int = 0,
    report: Report = silent,
) -> Reporters:
    """The reporters that `logging.to` names.

    Args:
        to: any of "tensorboard", "wandb" and "trackio".
        folder: the run's; its name is that of the run.
        project: for those that have projects.
        config: the settings of the run.
        step: where the run goes on: what was reported after it is void.
        report: told of a reporter that fails later. The run goes on without it.

    Raises:
        TuneError: one is not installed, or does not start.
    """
    made: list[tuple[str, Reporter]] = []
    for name in dict.fromkeys(to):
        try:
            made.append((name, _MAKERS[name](folder, project, config, step)))
        except BaseException:
            Reporters(made, report).close()
            raise
    return Reporters(made, report)


class Reporters:
    """Several reporters as one. It never ends a run: one that fails is told of, and left out from then on."""

    def __init__(self, reporters: Sequence[tuple[str, Reporter]], report: Report = silent) -> None:
        self._reporters, self._report = list(reporters), report

    def log(self, step: int, measures: Measures) -> None:
        self._each(lambda reporter: reporter.log(step, measures))

    def close(self) -> None:
        self._each(lambda reporter: reporter.close())
        self._reporters = []

    def _each(self, call: Callable[[Reporter], None]) -> None:
        for entry in tuple(self._reporters):
            name, reporter = entry
            try:
                call(reporter)
            except Exception as error:
                self._reporters.remove(entry)
                self._report.notice(f"{name} takes no more measures: {error}; the run goes on without it")


class TensorBoard:
    """Event files in `<run>/tensorboard`, by tensorboardX, which does without the program that shows them.

    The names of measures that begin with "eval_" are grouped apart.
    """

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any], step: int) -> None:
        package = _package("tensorboardX", "tensorboard", "tune")
        void = step + 1 if step else None  # TensorBoard forgets these steps of earlier files
        self._writer = package.SummaryWriter(
            str(folder / "tensorboard"), purge_step=void, flush_secs=10, filename_suffix=f".from-{step:06d}"
        )

    def log(self, step: int, measures: Measures) -> None:
        for name, value in measures.items():
            group = "eval" if name.startswith("eval_") else "train"
            self._writer.add_scalar(f"{group}/{name.removeprefix('eval_')}", value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases; WANDB_MODE=offline keeps all of it in `<run>/wandb`, to be sent later."""

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any], step: int) -> None:
        package = _package("wandb", "wandb", "wandb")
        note = folder / "wandb-id"
        known = note.read_text(encoding="utf-8").strip() if note.is_file() and step else None
        try:
            self._run = package.init(
                project=project,
                name=folder.resolve().name,
                config=dict(config),
                dir=str(folder),
                id=known,
                resume="allow" if known else None,
                settings=package.Settings(console="off", silent=True, disable_git=True, disable_code=True),
            )
            note.write_text(self._run.id, encoding="utf-8")
        except Exception as error:
            raise TuneError(
                f"wandb does not start: {_first_line(error)}; run `wandb login`, set WANDB_MODE=offline, or "
                "leave wandb out of logging.to"
            ) from None

    def log(self, step: int, measures: Measures) -> None:
        self._run.log(dict(measures), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """trackio: a dashboard on this machine, shown by `trackio show`."""

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any], step: int) -> None:
        package = _package("trackio", "trackio", "trackio")
        try:
            self._run = package.init(
                project=project,
                name=folder.resolve().name,
                config=dict(config),
                resume="allow" if step else "never",
                auto_log_gpu=False,
                auto_log_cpu=False,
                embed=False,
            )
        except Exception as error:
            raise TuneError(
                f"trackio does not start: {_first_line(error)}; leave it out of logging.to"
            ) from None

    def log(self, step: int, measures: Measures) -> None:
        self._run.log(
            {name: value if math.isfinite(value) else None for name, value in measures.items()}, step=step
        )

    def close(self) -> None:
        self._run.finish()


_MAKERS: Mapping[str, Callable[[Path, str, Mapping[str, Any], int], Reporter]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


def _package(module: str, name: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise TuneError(
            f"logging.to has {name}, which needs {module}: pip install 'corral[{extra}]', or leave it out"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
