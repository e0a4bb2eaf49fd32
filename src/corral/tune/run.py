"""A run of `corral tune`, from its settings to the weights it leaves."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import torch

import corral
from corral.checkpoints.checkpoint import Checkpoint
from corral.checkpoints.report import Report, silent
from corral.devices import memory_in_words, pick_device, pick_dtype
from corral.scale.processes import Processes, is_one_of_many
from corral.tune.card import RunSummary, model_card
from corral.tune.config import RunConfig
from corral.tune.environment import environment_of
from corral.tune.examples import Item
from corral.tune.feed import Feed, FeedOptions, Position
from corral.tune.identity import fingerprint, identity_of
from corral.tune.inputs import Inputs
from corral.tune.loop import Alone, Loop, Measures, Ranks
from corral.tune.memory_check import devices_of, require_memory
from corral.tune.objectives.choose import objective_of
from corral.tune.optimizer import Optimizer, learning_rate
from corral.tune.parallel import require_possible
from corral.tune.progress import Pace, StepProgress
from corral.tune.reference import is_cached, model_hash, with_reference
from corral.tune.reporters import Reporters, make_reporters
from corral.tune.run_folder import RunFolder
from corral.tune.samples import Asking
from corral.tune.saving import Checkpoints, Standing
from corral.tune.schedule import Schedule
from corral.tune.sharded_store import ShardedStore
from corral.tune.stopping import Stopping
from corral.tune.subject import check_objective, load_subject


def run(config: RunConfig, *, resume: bool = False, report: Report = silent) -> int:
    """Trains a model as the settings say; gives the exit code: 0, or 128 and a signal's number where one
    asked the run to stop, which has been saved then.

    Args:
        config: the settings.
        resume: go on from the last checkpoint of the run folder, where there is one.
        report: told of downloads and what a person should know, before steps begin.

    Raises:
        CorralError: whatever the user can mend: settings, data, memory, disk.
    """
    check_objective(config)
    with ExitStack() as stack:
        processes: Processes | None = None
        if is_one_of_many():
            kind = pick_device(config.compute.device).type
            processes = stack.enter_context(Processes.join(kind, config.parallel.tensor))
        require_possible(config, 1 if processes is None else processes.everyone.size)
        folder = None
        if processes is None or processes.is_first:
            folder = stack.enter_context(RunFolder(Path(config.output), config, resume=resume))
        stopping = stack.enter_context(Stopping())
        training = _Training(config, folder, processes, stopping, report, stack)
        device = training.subject.network.device
        with memory_in_words(device):
            training.begin(resume=resume)
            training.steps()
            training.end()
        return stopping.exit_code


class _Training:
    """A run under way."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder | None,
        processes: Processes | None,
        stopping: Stopping,
        report: Report,
        stack: ExitStack,
    ) -> None:
        self.config, self._folder, self._processes, self._stopping = config, folder, processes, stopping
        self._report, self._stack = report, stack
        self._ranks: Ranks = processes or Alone()
        device = pick_device(config.compute.device) if processes is None else processes.device
        dtype = pick_dtype(config.compute.dtype, device)
        with nullcontext() if processes is None else processes.first_alone():
            inputs = Inputs.open(config, report)
        checkpoint, self._data = inputs.checkpoint, inputs.data
        for line in self._data.report.lines() if folder is not None else ():
            report.notice(line)
        if config.compute.check_memory:
            devices = devices_of(device, self._ranks.size if config.parallel.shard else 1)
            require_memory(config, checkpoint.config, self._data.max_length, dtype, devices)
        length = self._data.max_length
        with memory_in_words(device):
            self.subject = load_subject(config, checkpoint, device, dtype, length, processes, stack)
            self._optimizer = Optimizer(self.subject.parameters, config.optimizer)
        self._objective = objective_of(config, length, self._ranks)
        self._loop = Loop(
            self.subject.network,
            self._objective,
            list(self.subject.parameters.values()),
            self._optimizer,
            self._ranks,
        )
        self._feed = self._feed_of(self._with_reference(self._data.train), self._data.train.lengths.tolist())
        held_out = self._data.eval
        self._held_out = None
        if held_out is not None:
            self._held_out = self._feed_of(
                self._with_reference(held_out), held_out.lengths.tolist(), evaluates=True
            )
        self.total = _total_steps(config, self._feed)
        self._schedule = Schedule.of(config.schedule, self.total)
        self._lr = learning_rate(config)
        self._checkpoints = self._checkpoints_of(checkpoint)
        self._step, self._position = 0, Position()
        self._tokens = self._seconds = 0.0
        self._epochs = 0.0
        self._evaluated: dict[int, Measures] = {}
        self._asking = Asking(config, inputs, self.subject, report)
        self._last: Mapping[str, float] = {}
        self._saved: int | None = None

    def begin(self, *, resume: bool) -> None:
        """Takes up where the run stands, and measures the model as it is."""
        torch.manual_seed(self.config.seed + self._ranks.rank)  # dropout: each rank drops its own
        latest = self._checkpoints.latest() if resume else None
        self._open_logs(latest or 0)
        if latest is None:
            self._evaluate()
            return
        # The last thing before the next step: nothing may draw random numbers in between.
        standing = self._checkpoints.restore(latest, self.subject.parameters, self._optimizer)
        self._step, self._position, self._saved = standing.step, standing.position, latest
        self._tokens, self._seconds, self._epochs = (
            standing.counters.get(name, 0.0) for name in ("tokens", "seconds", "epochs")
        )

    def _open_logs(self, step: int) -> None:
        """Where measures go, after a step from which the run goes on."""
        self._reporters = Reporters([], self._report)
        if self._folder is None:
            return
        if step:
            self._report.notice(f"Going on after step {step} of {self.total}.")
        self._folder.metrics.cut(step or None)
        environment = environment_of(self.subject.network.device, self._ranks.size)
        if other := self._folder.write_environment(environment):
            self._report.notice(f"The environment is another than before: {other}.")
        logging, settings = self.config.logging, self.config.to_dict()
        installed = ["tensorboard"] if find_spec("tensorboardX") else []
        to = installed if logging.to is None else logging.to
        self._reporters = make_reporters(to, self._folder.path, logging.project, settings, step, self._report)
        self._stack.callback(self._reporters.close)

    def steps(self) -> None:
        """Runs the steps up to the last one, or until somebody asks to stop."""
        pace, config = Pace(), self.config
        steps = self._feed.steps(self._position)
        with StepProgress(self.total, self._step, every=max(1, config.logging.every)) as progress:
            while self._step < self.total and not self._asked_to_stop():
                step, lr = next(steps), self._lr * self._schedule(self._step)
                began = time.perf_counter()
                pace.begin()
                self.subject.train()
                measures, norm = self._loop.step(step, lr)
                pace.end(measures.tokens)
                self._step, self._position, self._epochs = self._step + 1, step.after, step.progress
                self._tokens += measures.tokens
                self._seconds += time.perf_counter() - began
                values = {"loss": measures.loss, **measures.metrics, "lr": lr, "grad_norm": norm}
                self._note(values, pace)
                if self._folder is not None:
                    progress.show(self._step, values, pace, self.subject.network.device)
                self._after_step()

    def end(self) -> None:
        """Evaluates, saves, and writes the weights and the card."""
        finished = self._step >= self.total
        if finished:
            self._evaluate()
        if self._saved != self._step and self._step:
            self._save()
        if finished:
            path = Path(self.config.output) / self.subject.weights
            self.subject.save(self.config, path, self._processes)
        if self._folder is None:
            return
        self._folder.draw(self._folder.path.name)
        self._folder.write_card(model_card(self._summary()))
        if finished:
            self._report.notice(f"The {self.subject.weights} is in {path}.")
        else:
            self._report.notice(
                f"Stopped by {self._stopping.signal_name} and saved after step {self._step} of {self.total}; "
                "the same command with --resume goes on."
            )

    def _after_step(self) -> None:
        every = self.config.evaluation.every
        if every and self._step % every == 0 and self._step < self.total:
            self._evaluate()
        every = self.config.checkpoints.every
        if every and self._step % every == 0:
            self._save()

    def _note(self, values: Mapping[str, float], pace: Pace) -> None:
        if self._folder is None or (self._step % self.config.logging.every and self._step < self.total):
            return
        self._last = values
        row = {
            **values,
            "epoch": self._epochs,
            "tokens": self._tokens,
            "tokens_per_second": pace.tokens_per_second,
        }
        self._folder.metrics.add(self._step, row)
        self._reporters.log(self._step, row)

    def _evaluate(self) -> None:
        """Measures the held-out rows, and asks the prompts."""
        self.subject.train(False)
        if self._held_out is not None and self._step not in self._evaluated:
            steps = islice(self._held_out.steps(), self._held_out.steps_per_epoch)
            measures = self._evaluated[self._step] = self._loop.evaluate(steps)
            values = {"eval_loss": measures.loss}
            values |= {f"eval_{name}": value for name, value in measures.metrics.items()}
            if self._folder is not None:
                self._folder.metrics.add(self._step, values)
                self._reporters.log(self._step, values)
                shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
                self._report.notice(f"After step {self._step}: {shown}")
        if self._folder is not None:
            self._asking.ask(self._step)

    def _save(self) -> None:
        measures = self._evaluated.get(self._step)
        counters = {"tokens": self._tokens, "seconds": self._seconds, "epochs": self._epochs}
        if self._folder is not None:
            self._folder.metrics.sync()
        self._checkpoints.save(
            Standing(self._step, self._position, counters),
            self.subject.parameters,
            self._optimizer,
            None if measures is None else measures.loss,
        )
        self._saved = self._step

    def _asked_to_stop(self) -> bool:
        asked = self._stopping.asked
        return asked if self._processes is None else self._processes.any(asked)

    def _with_reference(self, items: Sequence[Item]) -> Sequence[Item]:
        """The rows with what the reference says of them, where that is computed before training."""
        config, subject = self.config, self.subject
        if config.objective not in ("dpo", "kto"):
            return items
        settings = config.dpo if config.objective == "dpo" else config.kto
        continued = config.parameters.adapter is not None
        adapters = subject.adapters is not None
        if not is_cached(config.objective, settings.reference, adapters=adapters, continued=continued):
            return items
        subject.train(False)
        return with_reference(
            items,
            subject.network,
            model_hash(subject.model),
            batch_tokens=config.batch.size * self._data.max_length,
            max_length=self._data.max_length,
            adapted=continued,
            ranks=self._ranks,
        )

    def _feed_of(self, items: Sequence[Item], lengths: Sequence[int], *, evaluates: bool = False) -> Feed:
        batch, data = self.config.batch, self.config.data
        options = FeedOptions(
            batch_size=batch.size,
            accumulation=1 if evaluates else batch.accumulation,
            max_length=self._data.max_length,
            packing=data.packing and self.config.objective in ("sft", "pretrain"),
            shuffle=data.shuffle and not evaluates,
            seed=self.config.seed,
        )
        ranks = self._ranks
        smallest = self._objective.smallest_batch
        return Feed(items, lengths, options, rank=ranks.rank, ranks=ranks.size, smallest_batch=smallest)

    def _checkpoints_of(self, checkpoint: Checkpoint) -> Checkpoints:
        config, processes = self.config, self._processes
        count = 1 if processes is None else processes.everyone.size
        identity = identity_of(config, fingerprint(checkpoint.files), self._data.train.fingerprint, count)
        spread = config.parallel.shard or config.parallel.tensor > 1
        return Checkpoints(
            Path(config.output) / "checkpoints",
            identity,
            keep=config.checkpoints.keep,
            keep_best=config.checkpoints.keep_best,
            device=self.subject.network.device,
            store=ShardedStore(self.subject.model) if spread else None,
            processes=None if processes is None else processes.everyone,
        )

    def _summary(self) -> RunSummary:
        config, best = self.config, self._checkpoints.best()
        first, *_, last = sorted(self._evaluated) * 2 if self._evaluated else [0, 0]
        path = Path(config.output)
        return RunSummary(
            name=path.name,
            model=config.model,
            config=config,
            version=corral.__version__,
            weights=self.subject.weights,
            rows=len(self._data.train),
            held_out_rows=0 if self._data.eval is None else len(self._data.eval),
            parameters=(self.subject.num_trained, self.subject.model.config.num_parameters),
            steps=self._step,
            total_steps=self.total,
            epochs=self._epochs,
            tokens=round(self._tokens),
            seconds=self._seconds,
            lr=self._lr,
            device=self.subject.network.device.type,
            before=self._measures_at(first),
            after=self._measures_at(last) if last != first else {},
            best=None if best is None else (best.step, best.loss),
            training_loss=self._last.get("loss"),
            samples=self._asking.samples(),
            curve=(path / "loss.png").is_file(),
        )

    def _measures_at(self, step: int) -> Mapping[str, float]:
        measures = self._evaluated.get(step)
        return {} if measures is None else {"loss": measures.loss, **measures.metrics}


def _total_steps(config: RunConfig, feed: Feed) -> int:
    """Steps of the run: those of whole epochs, and of a share of one more."""
    whole = math.floor(config.epochs)
    total = sum(feed.steps_of(epoch) for epoch in range(whole))
    if config.epochs > whole:
        total += math.ceil((config.epochs - whole) * feed.steps_of(whole))
    return total if config.max_steps is None else min(total, config.max_steps)
