"""Reward models: scores of whole documents, what they learn, and their checkpoints in transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from corral.checkpoints.checkpoint import GenerationConfig
from corral.checkpoints.hf_writer import SideFiles
from corral.text.tokenizer import Tokenizer
from corral.tune.batch import Batch
from corral.tune.config import RewardConfig
from corral.tune.examples import Example, Pair
from corral.tune.network import Network
from corral.tune.objectives.reward import Reward, add_score, export_reward, rewards
from tests.random_models import SMALL_CHAT, random_model
from tests.text.vocabularies import chatml_tokenizer_json
from tests.tune.objectives.preferences import (
    adapted,
    gradients_of_steps,
    pairs,
    require_same,
    trainable,
    trained,
)


def documents() -> list[Example]:
    return [
        document for item in pairs(4) if isinstance(item, Pair) for document in (item.chosen, item.rejected)
    ]


def test_the_score_is_of_the_last_token_of_each_document_alone() -> None:
    network = trainable()
    add_score(network.model)
    together = rewards(network, Batch.of(documents()))
    alone = torch.cat([rewards(network, Batch.of([document])) for document in documents()])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert together.dtype == torch.float32
    assert together.std() > 0


def test_the_score_is_trained_in_the_heads_place() -> None:
    network = trainable()
    score = add_score(network.model)
    assert score.weight.requires_grad
    assert "score.weight" in network.model.state_dict()
    assert not network.model.lm_head.weight.requires_grad
    tied = random_model(replace(SMALL_CHAT, tie_word_embeddings=True)).requires_grad_(True)
    add_score(tied)
    assert tied.model.embed_tokens.weight.requires_grad


def test_how_a_step_is_cut_changes_nothing() -> None:
    objective, items = Reward(RewardConfig(center=0.1)), pairs(8, seed=1)
    together = gradients_of_steps(objective, items, batch_size=8, accumulation=1, score=True)
    assert together["score.weight"].abs().sum() > 0
    for batch_size, accumulation in ((1, 8), (3, 3)):
        require_same(gradients_of_steps(objective, items, batch_size, accumulation, score=True), together)


def test_held_out_pairs_are_ranked_after_training() -> None:
    network, adapters = adapted()
    score = add_score(network.model)
    before, after = trained(
        Reward(RewardConfig()),
        network,
        [*adapters.parameters(), score.weight],
        pairs(96, seed=1, telling=True),
        pairs(32, seed=2, telling=True),
        lr=0.01,
    )
    assert after.metrics["accuracy"] > max(0.9, before.metrics["accuracy"])
    assert after.loss < before.loss


def test_centering_keeps_the_sums_of_rewards_near_zero() -> None:
    sizes = []
    for center in (0.0, 0.5):
        network = trainable()
        score = add_score(network.model)
        with torch.no_grad():
            score.weight *= 10  # rewards begin away from zero
        objective, held_out = Reward(RewardConfig(center=center)), pairs(16, seed=2)
        trained(objective, network, [score.weight], pairs(64, seed=1), held_out, lr=0.01)
        with torch.no_grad():
            scores = rewards(network, objective.collate(held_out))
        sizes.append(float(scores.view(-1, 2).sum(1).pow(2).mean()))
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize("padding", [None, 2, 7], ids=["none", "a stop id", "its own"])
def test_transformers_scores_documents_alike(padding: int | None, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(chatml_tokenizer_json(), encoding="utf-8")
    tokenizer = Tokenizer.from_hf(tmp_path)
    config = replace(SMALL_CHAT, pad_token_id=padding)
    model = random_model(config)
    with torch.no_grad():
        add_score(model).weight *= 20
    out = tmp_path / "reward"
    export_reward(model, SideFiles(config, GenerationConfig(eos_token_ids=(2,)), tokenizer), out)

    texts = [[1, 30, 31, 2], [1, 40, 2], [50, 51, 52, 53, 54, 2]]  # each ends with the stop id
    oracle = AutoModelForSequenceClassification.from_pretrained(out, attn_implementation="eager").eval()
    assert type(oracle).__name__ == "LlamaForSequenceClassification"
    pad = oracle.config.pad_token_id
    assert pad not in (None, 2)
    assert padding in (None, 2) or pad == padding
    rows = torch.tensor([text + [pad] * (6 - len(text)) for text in texts])
    with torch.no_grad():
        theirs = oracle(input_ids=rows, attention_mask=(rows != pad).long()).logits.squeeze(1)
        ours = rewards(Network(model), Batch.of([document_of(text) for text in texts]))
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)
    assert theirs.std() > 0.1


def document_of(tokens: list[int]) -> Example:
    return Example(np.array(tokens, dtype=np.int32), np.zeros(len(tokens), dtype=np.bool_))
