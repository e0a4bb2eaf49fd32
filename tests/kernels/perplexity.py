"""How well a model predicts a text that every Python has: the documentation in `pydoc_data`."""

from __future__ import annotations

from pydoc_data.topics import topics

import torch

from corral import LLM
from corral.model.presets import DEFAULT_MODEL

WINDOW = 1024  # tokens that are scored together, each but the first


def negative_log_likelihoods(tokens: int, **options: object) -> torch.Tensor:
    """Of each predicted token [<= tokens], with the default model; `options` are those of `LLM`."""
    with LLM(DEFAULT_MODEL, **options) as llm:  # type: ignore[arg-type]
        ids = llm.tokenizer.encode("\n\n".join(topics[name] for name in sorted(topics)))[:tokens]
        scores = llm.score([ids[at : at + WINDOW] for at in range(0, len(ids), WINDOW)], use_tqdm=False)
    logprobs = [logprob for score in scores for logprob in score.token_logprobs]
    return -torch.tensor(logprobs, dtype=torch.float64)
