"""What the model in training answers, by the engine that will serve it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from corral.checkpoints.report import Report
from corral.engine.batches import run_each
from corral.engine.build import build_engine
from corral.engine.options import EngineOptions
from corral.engine.request import Request
from corral.engine.sampling.params import SamplingParams
from corral.model.llama import Llama
from corral.text.base import render_text
from corral.text.messages import Message
from corral.text.rendered import Rendered, Renderer
from corral.text.tokenizer import Tokenizer
from corral.tune.card import Sample
from corral.tune.config import RunConfig
from corral.tune.inputs import Inputs
from corral.tune.parameters.folder import save_adapter
from corral.tune.subject import Subject

_NAME = "in-training"
_BLOCK = 16


class Asking:
    """The prompts of `evaluation`, asked again and again while the model changes.

    Args:
        config: the run.
        inputs: what it started from.
        subject: the model in training.
        report: told of answers, or why there are none.
    """

    def __init__(self, config: RunConfig, inputs: Inputs, subject: Subject, report: Report) -> None:
        self._config, self._inputs, self._subject, self._report = config, inputs, subject, report
        self._answers: dict[int, list[str]] = {}

    def ask(self, step: int) -> None:
        """Asks all prompts with the weights as they are after a step."""
        prompts = self._config.evaluation.prompts
        if not prompts or step in self._answers:
            return
        if why := _why_not(self._config):
            self._report.notice(f"evaluation.prompts are not asked: {why}.")
            return
        with tempfile.TemporaryDirectory() as place:
            adapter = None
            if self._subject.adapters is not None:
                adapter = Path(place) / "adapter"
                save_adapter(adapter, self._subject.adapters, self._config.model)
            said = self._answers[step] = answers(
                self._subject.model,
                self._inputs.tokenizer,
                self._inputs.renderer,
                prompts,
                max_tokens=self._config.evaluation.max_tokens,
                stop_ids=self._inputs.checkpoint.config.eos_token_ids,
                adapter=adapter,
            )
        for prompt, answer in zip(prompts, said, strict=True):
            self._report.notice(f"  {prompt}\n    {answer.strip()}")

    def samples(self) -> list[Sample]:
        """The first answers, where they came before training, and the last ones."""
        if not self._answers:
            return []
        prompts, last = self._config.evaluation.prompts, self._answers[max(self._answers)]
        before = self._answers.get(0, [None] * len(prompts))
        return [Sample(*sample) for sample in zip(prompts, before, last, strict=True)]


def answers(
    model: Llama,
    tokenizer: Tokenizer,
    renderer: Renderer | None,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    stop_ids: Iterable[int] = (),
    adapter: Path | None = None,
) -> list[str]:
    """The likeliest answer to each prompt, a user's message; without a `renderer`, what continues it as text.

    The weights are used where they are; `adapter` is a PEFT folder to put beside them.

    Raises:
        CorralError: the adapter cannot be read, or a prompt cannot be rendered or is too long.
    """
    rendered = [_rendered(tokenizer, renderer, prompt, stop_ids) for prompt in prompts]
    longest = max(len(one.tokens) for one in rendered) + max_tokens
    longest = -(-longest // _BLOCK) * _BLOCK
    config = model.config
    token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    options = EngineOptions(
        kernels="torch",
        max_model_len=min(longest, config.max_position_embeddings),
        max_num_seqs=len(prompts),
        kv_cache_memory=(len(prompts) + 1) * longest * token_bytes,
    )
    training = model.training
    model.eval()
    try:
        with closing(build_engine(model, tokenizer, options)) as engine:
            if adapter is not None:
                engine.load_adapter(_NAME, adapter)
            params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
            name = None if adapter is None else _NAME
            requests = [Request(one.tokens, params, one.stop_ids, adapter=name) for one in rendered]
            done = [collector.result() for collector in run_each(engine, requests, tokenizer)]
    finally:
        model.train(training)
    return [result.outputs[0].text for result in done]


def _why_not(config: RunConfig) -> str:
    """What keeps the engine from running the model in training; empty where nothing does."""
    if config.parallel.shard or config.parallel.tensor > 1:
        return "the model is spread over processes"
    if config.parameters.method == "dora" or config.parameters.bias != "none":
        return "the engine runs DoRA and trained biases once `corral merge` has merged them"
    if config.objective == "reward":
        return "a reward model says nothing"
    return ""


def _rendered(
    tokenizer: Tokenizer, renderer: Renderer | None, prompt: str, stop_ids: Iterable[int]
) -> Rendered:
    if renderer is None:
        return render_text(tokenizer, prompt, stop_ids)
    return renderer.render([Message("user", prompt)])
