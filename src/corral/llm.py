"""The Python interface: a model by name, ready to generate, to chat and to score."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from corral.checkpoints.adapter_reader import check_adapter
from corral.checkpoints.checkpoint import Checkpoint
from corral.checkpoints.report import Report, silent
from corral.checkpoints.source import open_model
from corral.devices import memory_in_words, pick_device
from corral.engine.batches import arun_batch, asubmit, run_batch
from corral.engine.build import build_engine
from corral.engine.handle import Handle
from corral.engine.networks import load_network
from corral.engine.options import EngineOptions
from corral.engine.outputs import Collector, Delta, DeltaStream, RequestOutput, ScoreOutput, as_delta
from corral.engine.prompts import Dialog, Prompt, as_dialogs, as_prompts, one_for_each, require_prompt
from corral.engine.request import Request, Score
from corral.engine.run.adapters import adapter_folders
from corral.engine.sampling.params import SamplingParams
from corral.engine.speculation.draft_model import check_draft, check_draft_tokens
from corral.errors import CorralError, RequestError
from corral.model.presets import DEFAULT_MODEL
from corral.text.messages import as_messages
from corral.text.prompt_format import choose_renderer, render_text
from corral.text.rendered import Rendered, Renderer, RenderOptions, Tool
from corral.text.tokenizer import check_fits


class LLM:
    """A language model with its tokenizer, its prompt format, and an engine that runs it.

    Args:
        model: a short name, a Hub name, a folder or a .gguf file.
        dtype: "float32", "bfloat16", "float16", or "auto" for what suits the device.
        device: a torch device, or "auto" for CUDA where there is one, else the CPU.
        prompt_format: overrides the checkpoint's prompt format, such as "llama-3.1" or "llama-3.1-meta".
        for_chat: refuse a base model, which has no prompt format, before its weights are read.
        adapters: PEFT LoRA folders by the names under which requests use them.
        report: told about downloads, and what the engine has to say; see `corral.checkpoints.report`.
        engine: further options; see `corral.engine.options.EngineOptions`, whose names they are: among them
            `max_model_len`, `kv_cache_dtype`, `enable_prefix_caching` and `speculative_config`.

    Every method may be called from any thread. Use it in a `with` block, or call `close`, to end the engine.

    Raises:
        CorralError: the model cannot be found, read or run as asked; the message says why.
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        *,
        dtype: str = "auto",
        device: str = "auto",
        prompt_format: str | None = None,
        for_chat: bool = False,
        adapters: Mapping[str, str | Path] | None = None,
        report: Report = silent,
        **engine: Any,
    ) -> None:
        if not isinstance(model, str | Path):
            raise RequestError(f"model is {model!r}; it must be a name or a path")
        self.name = str(model)
        options = EngineOptions.of(engine)
        folders = adapter_folders(adapters)
        self.checkpoint = open_model(self.name, report)
        self.config = self.checkpoint.config
        options.check(self.config)
        self.tokenizer = self.checkpoint.tokenizer()
        check_fits(self.tokenizer, self.config.vocab_size)
        self._prompt_format = prompt_format
        if for_chat or prompt_format is not None:
            _ = self.renderer
        for folder in folders.values():
            check_adapter(folder, self.config)
        guesser = self._open_draft(options, report)
        place = pick_device(device)
        with memory_in_words(place):
            self.network = load_network(self.checkpoint, dtype, place, options, report.notice)
            as_it_is = replace(options, quantize=None)
            draft = None if guesser is None else load_network(guesser, dtype, place, as_it_is, report.notice)
            self.engine = build_engine(self.network, self.tokenizer, options, draft, report.notice)
        self._finalizer = weakref.finalize(self, self.engine.close)
        try:
            for name, folder in folders.items():
                self.engine.load_adapter(name, folder)
        except CorralError:
            self.close()
            raise

    def close(self) -> None:
        """Ends the engine and frees its memory; requests that still run are cancelled."""
        self._finalizer()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def max_model_len(self) -> int:
        """The longest context in tokens, prompt and output together, as it was fitted to the memory."""
        return self.engine.max_model_len

    @cached_property
    def renderer(self) -> Renderer:
        """The prompt format.

        Raises:
            RenderError: the model is a base model, without one.
        """
        return choose_renderer(
            self.tokenizer,
            chat_template=self.checkpoint.chat_template,
            family=self.checkpoint.family,
            prompt_format=self._prompt_format,
            stop_ids=self.stop_ids,
        )

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end a text, as the checkpoint states them."""
        stated = {*self.config.eos_token_ids, *self.checkpoint.generation.eos_token_ids}
        if not stated and self.tokenizer.eos_id is not None:
            stated = {self.tokenizer.eos_id}
        return frozenset(i for i in stated if 0 <= i < self.config.vocab_size)  # others can never come

    def default_sampling_params(self) -> SamplingParams:
        """What the checkpoint's makers recommend; greedy where they say nothing."""
        defaults = self.checkpoint.generation
        penalty = defaults.repetition_penalty or 1.0
        if not defaults.do_sample:
            return SamplingParams(temperature=0.0, repetition_penalty=penalty)
        return SamplingParams(
            temperature=1.0 if defaults.temperature is None else defaults.temperature,
            top_k=defaults.top_k or 0,
            top_p=1.0 if defaults.top_p is None else defaults.top_p,
            min_p=defaults.min_p or 0.0,
            repetition_penalty=penalty,
        )

    def render(
        self, messages: Dialog, tools: Sequence[Tool] = (), options: RenderOptions = RenderOptions()
    ) -> Rendered:
        """The prompt of a dialog, as tokens."""
        return self.renderer.render(as_messages(messages), tools, options)

    def request(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> Request:
        """A request that continues a text (or tokens), for `engine.submit`."""
        params = sampling_params or self.default_sampling_params()
        return Request(self._prompt_tokens(prompt), params, self.stop_ids, continues=True, adapter=adapter)

    def chat_request(
        self,
        messages: Dialog,
        sampling_params: SamplingParams | None = None,
        tools: Sequence[Tool] = (),
        options: RenderOptions = RenderOptions(),
        *,
        adapter: str | None = None,
    ) -> Request:
        """A request that answers a dialog, for `engine.submit`."""
        rendered = self.render(messages, tools, options)
        return Request(
            rendered.tokens,
            sampling_params or self.default_sampling_params(),
            rendered.stop_ids,
            continues=options.continue_final_message,
            adapter=adapter,
        )

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> DeltaStream:
        """Continues a text (or tokens), piece by piece."""
        request = self.request(prompt, sampling_params, adapter=adapter)
        return DeltaStream(self.engine.submit(request), self.tokenizer)

    def stream_chat(
        self,
        messages: Dialog,
        sampling_params: SamplingParams | None = None,
        tools: Sequence[Tool] = (),
        options: RenderOptions = RenderOptions(),
        *,
        adapter: str | None = None,
    ) -> DeltaStream:
        """Answers a dialog, piece by piece."""
        request = self.chat_request(messages, sampling_params, tools, options, adapter=adapter)
        return DeltaStream(self.engine.submit(request), self.tokenizer)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        adapter: str | None = None,
    ) -> list[RequestOutput]:
        """Continues one text or several, which run together; the outputs keep the order of the prompts.

        `sampling_params` are for all prompts, or one for each.
        """
        several = as_prompts(prompts)
        requests = self._requests(several, sampling_params, adapter)
        collectors = run_batch(self.engine, requests, self.tokenizer, use_tqdm=use_tqdm)
        return _outputs(collectors, several)

    def chat(
        self,
        messages: Dialog | Sequence[Dialog],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        tools: Sequence[Tool] = (),
        options: RenderOptions = RenderOptions(),
        *,
        use_tqdm: bool = True,
        adapter: str | None = None,
    ) -> list[RequestOutput]:
        """Answers one dialog or several; the list has an entry for each."""
        requests = self._chat_requests(messages, sampling_params, tools, options, adapter)
        return _outputs(run_batch(self.engine, requests, self.tokenizer, use_tqdm=use_tqdm))

    def score(
        self,
        prompts: Prompt | Sequence[Prompt],
        score: Score | Sequence[Score] = Score(),
        *,
        use_tqdm: bool = True,
        adapter: str | None = None,
    ) -> list[ScoreOutput]:
        """Log-probabilities of the tokens of one text or several, and of tokens that could come next."""
        requests = self._score_requests(prompts, score, adapter)
        collectors = run_batch(self.engine, requests, self.tokenizer, use_tqdm=use_tqdm)
        return [collector.score() for collector in collectors]

    async def astream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> AsyncIterator[Delta]:
        """As `stream`, in an event loop."""
        request = self.request(prompt, sampling_params, adapter=adapter)
        async for delta in self._adeltas(await asubmit(self.engine, request)):
            yield delta

    async def astream_chat(
        self,
        messages: Dialog,
        sampling_params: SamplingParams | None = None,
        tools: Sequence[Tool] = (),
        options: RenderOptions = RenderOptions(),
        *,
        adapter: str | None = None,
    ) -> AsyncIterator[Delta]:
        """As `stream_chat`, in an event loop."""
        request = self.chat_request(messages, sampling_params, tools, options, adapter=adapter)
        async for delta in self._adeltas(await asubmit(self.engine, request)):
            yield delta

    async def agenerate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | None = None,
    ) -> list[RequestOutput]:
        """As `generate`, in an event loop."""
        several = as_prompts(prompts)
        requests = self._requests(several, sampling_params, adapter)
        return _outputs(await arun_batch(self.engine, requests, self.tokenizer), several)

    async def achat(
        self,
        messages: Dialog | Sequence[Dialog],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        tools: Sequence[Tool] = (),
        options: RenderOptions = RenderOptions(),
        *,
        adapter: str | None = None,
    ) -> list[RequestOutput]:
        """As `chat`, in an event loop."""
        requests = self._chat_requests(messages, sampling_params, tools, options, adapter)
        return _outputs(await arun_batch(self.engine, requests, self.tokenizer))

    async def ascore(
        self,
        prompts: Prompt | Sequence[Prompt],
        score: Score | Sequence[Score] = Score(),
        *,
        adapter: str | None = None,
    ) -> list[ScoreOutput]:
        """As `score`, in an event loop."""
        requests = self._score_requests(prompts, score, adapter)
        return [c.score() for c in await arun_batch(self.engine, requests, self.tokenizer)]

    def _requests(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        adapter: str | None,
    ) -> list[Request]:
        pairs = zip(
            prompts, one_for_each("sampling_params", SamplingParams, params, len(prompts)), strict=True
        )
        return [self.request(prompt, one, adapter=adapter) for prompt, one in pairs]

    def _chat_requests(
        self,
        messages: Dialog | Sequence[Dialog],
        params: SamplingParams | Sequence[SamplingParams] | None,
        tools: Sequence[Tool],
        options: RenderOptions,
        adapter: str | None,
    ) -> list[Request]:
        dialogs = as_dialogs(messages)
        pairs = zip(
            dialogs, one_for_each("sampling_params", SamplingParams, params, len(dialogs)), strict=True
        )
        return [self.chat_request(dialog, one, tools, options, adapter=adapter) for dialog, one in pairs]

    def _score_requests(
        self, prompts: Prompt | Sequence[Prompt], score: Score | Sequence[Score], adapter: str | None
    ) -> list[Request]:
        several = as_prompts(prompts)
        pairs = zip(several, one_for_each("score", Score, score, len(several)), strict=True)
        return [Request(self._prompt_tokens(p), score=one or Score(), adapter=adapter) for p, one in pairs]

    def _prompt_tokens(self, prompt: Prompt) -> tuple[int, ...]:
        require_prompt("the prompt", prompt)
        return render_text(self.tokenizer, prompt).tokens if isinstance(prompt, str) else tuple(prompt)

    def _open_draft(self, options: EngineOptions, report: Report) -> Checkpoint | None:
        """The smaller model that guesses tokens, if one was asked for."""
        speculative = options.speculative_config
        if speculative is None or speculative.model is None:
            return None
        checkpoint = open_model(speculative.model, report)
        check_draft(self.config, checkpoint.config)
        check_draft_tokens(self.tokenizer, checkpoint.tokenizer())
        return checkpoint

    async def _adeltas(self, handle: Handle) -> AsyncIterator[Delta]:
        try:
            async for event in handle:
                delta = as_delta(event, self.tokenizer)
                if delta is not None:
                    yield delta
        finally:
            handle.cancel()


def _outputs(collectors: Sequence[Collector], prompts: Sequence[Prompt] = ()) -> list[RequestOutput]:
    texts = [prompt if isinstance(prompt, str) else None for prompt in prompts] or [None] * len(collectors)
    return [collector.result(text) for collector, text in zip(collectors, texts, strict=True)]
