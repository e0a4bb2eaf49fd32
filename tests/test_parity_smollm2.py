"""The default model, end to end, against transformers: the same weights, the same tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor

from corral.checkpoints.load import load_model
from corral.checkpoints.source import open_checkpoint
from corral.engine.build import build_engine
from corral.engine.engine import Engine
from corral.engine.options import EngineOptions
from corral.engine.request import Request
from corral.engine.sampling.params import SamplingParams
from corral.model.attention import PackedCausal
from corral.model.llama import Llama
from corral.text.tokenizer import Tokenizer
from tests.engine.engines import run

PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a small horse that",
    "def fibonacci(n):\n    ",
    "Q: What is 17 + 25?\nA:",
    "1, 1, 2, 3, 5, 8,",
    "Water boils at a temperature of",
    "La capitale de l'Italie est",
    "Die Hauptstadt von Spanien ist",
    "<|im_start|>user\nWrite a haiku about rain.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nList three primes.<|im_end|>\n<|im_start|>assistant\n",
    "SELECT name, COUNT(*) FROM users",
    '{"name": "Ada", "born": 1815, "known_for": [',
    "In 1969, the first person to walk on the Moon",
    "# Recipe: Pancakes\n\nIngredients:\n",
    "The mitochondria is",
    "To be, or not to be,",
    "猫は",
    "Translate to French: Good morning, my friend.\n",
    "x",
]
NEW_TOKENS = 128
GREEDY = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path) -> Tokenizer:
    return open_checkpoint(smollm2_path).tokenizer()


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> Llama:
    return load_model(open_checkpoint(smollm2_path), torch.float32)


@pytest.fixture(scope="module")
def oracle(model: Llama) -> Any:
    """transformers' network with the same weights, in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        network = LlamaForCausalLM(LlamaConfig(**model.config.to_hf()))
    network.to_empty(device="cpu")
    network.load_state_dict(model.state_dict(), assign=True)
    rotary = type(network.model.rotary_emb)(network.config)
    network.model.rotary_emb = rotary
    network.generation_config.eos_token_id = None
    return network.float().eval()


@pytest.fixture(scope="module")
def long_prompt(llama_models_folder: Path) -> str:
    """More than 2,000 tokens of Meta's documentation."""
    return (llama_models_folder / "llama3_1" / "prompt_format.md").read_text(encoding="utf-8")[:9000]


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer, long_prompt: str) -> list[list[int]]:
    return [*map(tokenizer.encode_prompt_text, PROMPTS), tokenizer.encode(long_prompt)]


@pytest.fixture(scope="module")
def engine(model: Llama, tokenizer: Tokenizer) -> Iterator[Engine]:
    engine = build_engine(model, tokenizer, EngineOptions(kv_cache_memory=2**30))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def outputs(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    """All prompts together, through one engine."""
    answers = run(engine, [Request(prompt, GREEDY) for prompt in prompts])
    return [list(answer.outputs[0].token_ids) for answer in answers]


@pytest.mark.parametrize("index", range(len(PROMPTS) + 1))
def test_greedy_tokens_equal_transformers(
    model: Llama, oracle: Any, prompts: list[list[int]], outputs: list[list[int]], index: int
) -> None:
    """Every greedy token is the one that transformers chooses after the same tokens, and logits agree.

    One pass of transformers over prompt and output gives its choice at every step: by induction, equal
    choices make its own greedy output the same.
    """
    prompt, output = prompts[index], outputs[index]
    assert len(output) == NEW_TOKENS
    tokens = torch.tensor([*prompt, *output])
    with torch.inference_mode():
        expected = oracle(tokens[None]).logits[0]
        hidden = model(tokens, torch.arange(len(tokens)), PackedCausal([0, len(tokens)]))
        logits = model.logits(hidden)
    assert expected[len(prompt) - 1 : -1].argmax(-1).tolist() == output
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=0)


def test_the_long_prompt_is_long(prompts: list[list[int]]) -> None:
    assert len(prompts[-1]) > 2000


class OutputPenalties(LogitsProcessor):  # type: ignore[misc]
    """OpenAI's penalties, which transformers has not: on what was generated, per token and per occurrence."""

    def __init__(self, prompt_length: int, frequency: float, presence: float) -> None:
        self.prompt_length, self.frequency, self.presence = prompt_length, frequency, presence

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for token, count in Counter(input_ids[0, self.prompt_length :].tolist()).items():
            scores[0, token] -= self.frequency * count + self.presence
        return scores


@pytest.mark.parametrize(
    "penalties",
    [
        {},
        {"repetition_penalty": 1.3},
        {"frequency_penalty": 0.7},
        {"presence_penalty": 1.5},
        {"repetition_penalty": 1.1, "frequency_penalty": 0.4, "presence_penalty": -0.5},
    ],
)
def test_the_loop_of_transformers_gives_the_same_text(
    engine: Engine, tokenizer: Tokenizer, oracle: Any, penalties: dict[str, Any]
) -> None:
    prompt = tokenizer.encode_prompt_text(PROMPTS[9])
    tokens = torch.tensor([prompt])  # the mask says that <|im_end|>, which is the padding id too, is text
    frequency, presence = (penalties.get(f"{kind}_penalty", 0.0) for kind in ("frequency", "presence"))
    theirs = oracle.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        do_sample=False,
        max_new_tokens=64,
        repetition_penalty=penalties.get("repetition_penalty", 1.0),
        logits_processor=[OutputPenalties(len(prompt), frequency, presence)],
    )
    (ours,) = run(engine, [Request(prompt, replace(GREEDY, max_tokens=64, **penalties))], tokenizer)
    expected = theirs[0, len(prompt) :].tolist()
    assert list(ours.outputs[0].token_ids) == expected
    assert ours.outputs[0].text == tokenizer.decode(expected, skip_control=True)
