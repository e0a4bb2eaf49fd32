"""The Python interface: a model by name, ready to generate and to chat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch

from corral.checkpoints.load import load_model
from corral.checkpoints.report import Report, silent
from corral.checkpoints.source import open_model
from corral.engine.generate import check_prompt, generate
from corral.engine.outputs import CompletionOutput, Delta, RequestOutput
from corral.engine.sampling import SamplingParams
from corral.errors import RequestError
from corral.model.config import DTYPES, LlamaConfig
from corral.model.presets import DEFAULT_MODEL
from corral.text.detokenizer import IncrementalDetokenizer
from corral.text.messages import Message, as_messages
from corral.text.prompt_format import choose_renderer, render_text
from corral.text.rendered import Rendered, Renderer, RenderOptions, Tool
from corral.text.tokenizer import check_fits

Prompt = str | Sequence[int]


class LLM:
    """A language model with its tokenizer and prompt format.

    Args:
        model: a short name, a Hub name, a folder or a .gguf file.
        dtype: "float32", "bfloat16", "float16", or "auto" for what suits the device.
        device: a torch device, or "auto" for CUDA where there is one, else the CPU.
        max_model_len: the longest context, prompt and output together; None takes the model's.
        prompt_format: overrides the checkpoint's prompt format, such as "llama-3.1" or "llama-3.1-meta".
        for_chat: refuse a base model, which has no prompt format, before its weights are read.
        report: told about downloads; see `corral.checkpoints.report`.

    Raises:
        CorralError: the model cannot be found, read or run as asked; the message says why.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        dtype: str = "auto",
        device: str = "auto",
        max_model_len: int | None = None,
        prompt_format: str | None = None,
        for_chat: bool = False,
        report: Report = silent,
    ) -> None:
        self.name = model
        self.checkpoint = open_model(model, report)
        self.config = self.checkpoint.config
        self.max_model_len = _context_length(self.config, max_model_len)
        self.tokenizer = self.checkpoint.tokenizer()
        check_fits(self.tokenizer, self.config.vocab_size)
        self._prompt_format = prompt_format
        if for_chat or prompt_format is not None:
            _ = self.renderer
        place = _device(device)
        with _memory_in_words(place):
            self.model = load_model(self.checkpoint, _dtype(dtype, place), place, self.max_model_len)

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
            return frozenset({self.tokenizer.eos_id})
        return frozenset(stated)

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
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        tools: Sequence[Tool] = (),
        options: RenderOptions = RenderOptions(),
    ) -> Rendered:
        """The prompt of a dialog, as tokens."""
        return self.renderer.render(as_messages(messages), tools, options)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Delta]:
        """Continues a text (or tokens), piece by piece."""
        return self._stream(self._prompt_tokens(prompt), params, self.stop_ids, continues=True)

    def stream_chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        params: SamplingParams | None = None,
        tools: Sequence[Tool] = (),
        options: RenderOptions = RenderOptions(),
    ) -> Iterator[Delta]:
        """Answers a dialog, piece by piece."""
        rendered = self.render(messages, tools, options)
        return self._stream(rendered.tokens, params, rendered.stop_ids, options.continue_final_message)

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None
    ) -> list[RequestOutput]:
        """Continues one text or several."""
        return [_collect(t, self.stream(t, params)) for t in map(self._prompt_tokens, _as_list(prompts))]

    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        params: SamplingParams | None = None,
        tools: Sequence[Tool] = (),
        options: RenderOptions = RenderOptions(),
    ) -> list[RequestOutput]:
        """Answers a dialog. The list has one entry."""
        tokens = self.render(messages, tools, options).tokens
        return [_collect(tokens, self.stream_chat(messages, params, tools, options))]

    def _prompt_tokens(self, prompt: Prompt) -> tuple[int, ...]:
        return render_text(self.tokenizer, prompt).tokens if isinstance(prompt, str) else tuple(prompt)

    def _stream(
        self, tokens: Sequence[int], params: SamplingParams | None, stop_ids: frozenset[int], continues: bool
    ) -> Iterator[Delta]:
        check_prompt(tokens, self.config.vocab_size, self.max_model_len)  # now, not at the first piece
        return self._pieces(tokens, params or self.default_sampling_params(), stop_ids, continues)

    def _pieces(
        self, tokens: Sequence[int], params: SamplingParams, stop_ids: frozenset[int], continues: bool
    ) -> Iterator[Delta]:
        stops = {*params.stop_token_ids, *(() if params.ignore_eos else stop_ids)}
        detokenizer = IncrementalDetokenizer(self.tokenizer, continues=continues)
        stopped = False
        generated = generate(self.model, tokens, params, stop_ids, self.max_model_len)
        while True:
            with _memory_in_words(self.model.device):
                token = next(generated, None)
            if token is None:
                break
            stopped = token in stops
            yield Delta("" if stopped else detokenizer.push(token), (token,))
        yield Delta(detokenizer.finish(), (), "stop" if stopped else "length")


def _collect(prompt: Sequence[int], deltas: Iterator[Delta]) -> RequestOutput:
    pieces = list(deltas)
    reason = pieces[-1].finish_reason
    assert reason is not None, "the last piece says why it is the last"
    output = CompletionOutput(
        "".join(piece.text for piece in pieces), tuple(i for piece in pieces for i in piece.token_ids), reason
    )
    return RequestOutput(tuple(prompt), (output,))


def _as_list(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """One text, or one row of token ids, is a list of one prompt."""
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return prompts  # type: ignore[return-value]


@contextmanager
def _memory_in_words(device: torch.device) -> Iterator[None]:
    """Turns torch's errors about memory into one that says what to do."""
    try:
        yield
    except RuntimeError as error:
        # On the CPU torch has no type of its own for it.
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise RequestError(
                f"not enough memory on {device}: `corral plan` shows what fits; a shorter context, a smaller "
                "dtype or a smaller model takes less"
            ) from error
        raise


def _context_length(config: LlamaConfig, asked: int | None) -> int:
    longest: int = config.max_position_embeddings
    if asked is None:
        return longest
    if asked < 1:
        raise RequestError(f"max_model_len is {asked}; it must be at least 1")
    stretches = config.rope_scaling is not None and config.rope_scaling.kind == "dynamic"
    if asked > longest and not stretches:
        raise RequestError(f"max_model_len is {asked}, but the model's context is {longest}")
    return asked


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise RequestError(f"device {name!r} is not available here; use cpu or auto") from None
    return device


def parse_dtype(name: str) -> torch.dtype:
    """The floating-point type with this name.

    Raises:
        RequestError: it is none of float32, bfloat16 and float16.
    """
    if name not in DTYPES:
        raise RequestError(f"dtype is {name!r}; it must be {', '.join(DTYPES)} or auto")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        fast = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return parse_dtype(name)
