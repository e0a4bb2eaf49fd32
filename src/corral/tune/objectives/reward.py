"""A reward model: a score for a whole document, from the hidden state of its last token.

Pairs are compared by the model of Bradley and Terry (1952), as in Ouyang et al. (2022, arXiv:2203.02155).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from corral.checkpoints.hf_writer import SideFiles, write_tensors
from corral.checkpoints.new_folder import new_folder
from corral.model.config import LlamaConfig
from corral.model.llama import Linear, Llama
from corral.text.tokenizer import Tokenizer
from corral.tune.batch import Batch
from corral.tune.config import RewardConfig
from corral.tune.examples import Item
from corral.tune.network import Network
from corral.tune.objectives.objective import Loss, Mean
from corral.tune.objectives.pairs import chosen_and_rejected, documents_of, pairs_of

SCORE = "score"
_SPREAD = 0.02  # the standard deviation of a new score, as transformers starts one
_PADDING = "<|finetune_right_pad_id|>"


class Reward:
    """The negative logarithm of the probability that the chosen document has the higher score, and a weight
    on the square of both scores' sum; summed over pairs. The network needs a score: see `add_score`."""

    smallest_batch = 1

    def __init__(self, config: RewardConfig) -> None:
        self._center = config.center

    def collate(self, items: Sequence[Item]) -> Batch:
        return Batch.of(documents_of(pairs_of(items)), items)

    def weight(self, batch: Batch) -> int:
        """Pairs."""
        return batch.num_documents // 2

    def __call__(self, network: Network, batch: Batch) -> Loss:
        scores = rewards(network, batch)
        chosen, rejected = chosen_and_rejected(scores)
        losses = -F.logsigmoid(chosen - rejected)
        if self._center:
            losses = losses + self._center * (chosen + rejected) ** 2
        n, scores = len(chosen), scores.detach()
        margins = chosen.detach() - rejected.detach()
        return Loss(
            losses.sum(),
            {
                "accuracy": Mean((margins > 0).sum(), n),
                "margin": Mean(margins.sum(), n),
                "mean_reward": Mean(scores.sum(), 2 * n),
            },
        )


def add_score(model: Llama, seed: int = 0) -> nn.Linear:
    """Gives a model the head `score` [1, D], in its type and on its device, and freezes the head that it has.

    Call it after it was chosen what is trained, and before the model is sharded. The new weight is trained
    whatever else is: it is `model.score.weight`, and `score.weight` in the state dict.
    """
    score = Linear(model.config.hidden_size, 1, bias=False, device=model.device, dtype=model.dtype)
    start = torch.randn(1, model.config.hidden_size, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        score.weight.copy_(_SPREAD * start)
    model.add_module(SCORE, score)
    if not model.config.tie_word_embeddings:
        model.lm_head.requires_grad_(False)
    return score


def rewards(network: Network, batch: Batch) -> Tensor:
    """The score of each document, float32 [documents]."""
    ends = torch.tensor(batch.bounds[1:], device=batch.tokens.device) - 1
    last = network.hidden(batch).index_select(0, ends)  # [documents, D]
    return F.linear(last.float(), _score_of(network.model).weight.float()).squeeze(1)


def export_reward(model: Llama, beside: SideFiles, out: Path) -> None:
    """Writes a model with a score as a folder that transformers loads as LlamaForSequenceClassification.

    transformers finds a document's last token by the padding after it. So the token for padding is one that
    ends no document: where the model's own does, another control token takes its place.

    Raises:
        CheckpointError: `out` exists and is not empty, or the disk is full.
    """
    _score_of(model)
    tensors = {name: t for name, t in model.state_dict().items() if name != "lm_head.weight"}
    with new_folder(out, sum(tensor.nbytes for tensor in tensors.values())) as folder:
        write_tensors(folder, ((name, tensor.cpu().contiguous()) for name, tensor in tensors.items()))
        beside.write(folder)
        (folder / "generation_config.json").unlink()
        file = folder / "config.json"
        config = {**json.loads(file.read_text(encoding="utf-8")), **_classifier_fields(beside)}
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _score_of(model: Llama) -> nn.Linear:
    score = getattr(model, SCORE, None)
    assert isinstance(score, nn.Linear), "add_score has given the model a score"
    return score


def _classifier_fields(beside: SideFiles) -> dict[str, object]:
    fields: dict[str, object] = {
        "architectures": ["LlamaForSequenceClassification"],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }
    padding = _padding_id(beside.config, beside.tokenizer)
    return fields if padding is None else {**fields, "pad_token_id": padding}


def _padding_id(config: LlamaConfig, tokenizer: Tokenizer) -> int | None:
    """The model's own token for padding, or else one that neither begins nor ends anything."""
    ends = {*config.eos_token_ids, tokenizer.eos_id, tokenizer.bos_id, config.bos_token_id}
    control = tokenizer.control
    wanted = [config.pad_token_id, control.get(_PADDING), *sorted(control.values())]
    return next((i for i in wanted if i is not None and i not in ends), None)
