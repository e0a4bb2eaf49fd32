"""What the model in training answers, by the engine that will serve it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

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

_NAME = "in-training"
_BLOCK = 16


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


def _rendered(
    tokenizer: Tokenizer, renderer: Renderer | None, prompt: str, stop_ids: Iterable[int]
) -> Rendered:
    if renderer is None:
        return render_text(tokenizer, prompt, stop_ids)
    return renderer.render([Message("user", prompt)])
