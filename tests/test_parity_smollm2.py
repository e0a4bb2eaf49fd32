"""The default model, end to end, against transformers: the same weights, the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from corral.checkpoints.load import load_model
from corral.checkpoints.source import open_checkpoint
from tests.engine.reference_loop import generate
from corral.engine.sampling.params import SamplingParams
from corral.model.attention import PackedCausal
from corral.model.llama import Llama
from corral.text.tokenizer import Tokenizer

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


def check(model: Llama, oracle: Any, prompt: list[int]) -> None:
    """Every greedy token is the one that transformers chooses after the same tokens, and logits agree.

    One pass of transformers over prompt and output gives its choice at every step: by induction, equal
    choices make its own greedy output the same.
    """
    output = list(generate(model, prompt, GREEDY, frozenset(), 8192))
    assert len(output) == NEW_TOKENS
    tokens = torch.tensor([*prompt, *output])
    with torch.inference_mode():
        expected = oracle(tokens[None]).logits[0]
        hidden = model(tokens, torch.arange(len(tokens)), PackedCausal([0, len(tokens)]))
    assert expected[len(prompt) - 1 : -1].argmax(-1).tolist() == output
    torch.testing.assert_close(model.logits(hidden), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_equal_transformers(
    model: Llama, tokenizer: Tokenizer, oracle: Any, prompt: str
) -> None:
    check(model, oracle, tokenizer.encode_prompt_text(prompt))


def test_greedy_tokens_equal_transformers_after_a_long_prompt(
    model: Llama, tokenizer: Tokenizer, oracle: Any, long_prompt: str
) -> None:
    prompt = tokenizer.encode(long_prompt)
    assert len(prompt) > 2000
    check(model, oracle, prompt)


def test_the_loop_of_transformers_gives_the_same_text(
    model: Llama, tokenizer: Tokenizer, oracle: Any
) -> None:
    prompt = tokenizer.encode_prompt_text(PROMPTS[8])
    tokens = torch.tensor([prompt])  # the mask says that <|im_end|>, which is the padding id too, is text
    theirs = oracle.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=NEW_TOKENS
    )
    assert theirs[0, len(prompt) :].tolist() == list(generate(model, prompt, GREEDY, frozenset(), 8192))
