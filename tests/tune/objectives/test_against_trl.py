"""Losses, gradients and metrics equal those of TRL's own trainers on the same rows and weights."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig as OracleConfig
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast

from corral.tune.config import DPOConfig, KTOConfig, ORPOConfig, RewardConfig
from corral.tune.examples import Example, Item, Pair, Rated, joined
from corral.tune.network import Network
from corral.tune.objectives.dpo import DPO
from corral.tune.objectives.kto import KTO
from corral.tune.objectives.objective import Loss
from corral.tune.objectives.orpo import ORPO, log_odds_ratio
from corral.tune.objectives.reward import Reward, add_score
from tests.peft_adapters import transformers_llama
from tests.random_models import SMALL, random_model
from tests.tune.objectives.preferences import adapted, gradients, loss_of, pairs, rated, referenced, trainable

# They say nothing of their types.
datasets: Any = importlib.import_module("datasets")
trl: Any = importlib.import_module("trl")
trl_orpo: Any = importlib.import_module("trl.experimental.orpo")

PADDING, EOS = 126, 127
SETTINGS: dict[str, Any] = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "max_length": None,
    "activation_checkpointing": False,
    "per_device_train_batch_size": 8,
}


def words() -> PreTrainedTokenizerFast:
    """A tokenizer whose words are t0, t1, … for 0, 1, …"""
    vocabulary = {f"t{i}": i for i in range(PADDING)} | {"<pad>": PADDING, "<eos>": EOS}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def text(tokens: Any) -> str:
    return " " + " ".join(f"t{token}" for token in tokens)


def with_end(tokens: Any) -> Any:
    """TRL ends a completion that does not end."""
    return np.append(tokens, EOS).astype(np.int32)


def prompt_and_completion(example: Example) -> tuple[Any, Any]:
    return example.tokens[~example.trained], example.tokens[example.trained]


def pair_rows(items: Sequence[Item]) -> tuple[list[dict[str, str]], list[Item]]:
    """Pairs as TRL's rows, and as ours with the end that it adds."""
    rows: list[dict[str, str]] = []
    ended: list[Item] = []
    for item in items:
        assert isinstance(item, Pair)
        prompt, chosen = prompt_and_completion(item.chosen)
        _, rejected = prompt_and_completion(item.rejected)
        rows.append({"prompt": text(prompt), "chosen": text(chosen), "rejected": text(rejected)})
        ended.append(Pair(joined(prompt, with_end(chosen)), joined(prompt, with_end(rejected))))
    return rows, ended


def require_same_gradients(network: Network, oracle: torch.nn.Module) -> None:
    ours = gradients(network.model)
    theirs = {name: p.grad for name, p in oracle.named_parameters() if p.grad is not None}
    compared = [name for name in theirs if name in ours]
    assert len(compared) == len(theirs)
    for name in compared:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=2e-6)


def require_same_metrics(loss: Loss, theirs: Mapping[str, list[float]], names: Sequence[str]) -> None:
    for name in names:
        mean = loss.metrics[name]
        assert float(mean.sum) / float(mean.count) == pytest.approx(theirs[name][-1], rel=1e-4, abs=1e-5), (
            name
        )


PREFERENCE_METRICS = [
    f"{measure}/{which}"
    for measure, whichs in (
        ("rewards", ("chosen", "rejected", "accuracies", "margins")),
        ("logps", ("chosen", "rejected")),
    )
    for which in whichs
]


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({"loss": "sigmoid"}, {"loss_type": ["sigmoid"]}),
        ({"loss": "sigmoid", "beta": 0.7}, {"loss_type": ["sigmoid"], "beta": 0.7}),
        ({"loss": "hinge", "beta": 0.3}, {"loss_type": ["hinge"], "beta": 0.3}),
        ({"loss": "ipo"}, {"loss_type": ["ipo"]}),
        ({"loss": "robust", "label_smoothing": 0.2}, {"loss_type": ["robust"], "label_smoothing": 0.2}),
        ({"loss": "sigmoid_norm", "beta": 2.0}, {"loss_type": ["sigmoid_norm"], "beta": 2.0}),
        (
            {"loss": "sigmoid", "sft_weight": 0.3},
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]},
        ),
        (
            {"loss": "ipo", "sft_weight": 1.5},
            {"loss_type": ["ipo", "sft"], "loss_weights": [1.0, 1.5]},
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if "loss" in value else "",
)
def test_dpo_is_that_of_trl(settings: dict[str, Any], theirs: dict[str, Any], tmp_path: Path) -> None:
    # "sft" there is a mean over the tokens of the microbatch, here of means over those of each completion.
    rows, items = pair_rows(pairs(6, seed=3, chosen_length=5 if "sft_weight" in settings else None))
    trainer = trl.DPOTrainer(
        model=transformers_llama(random_model(SMALL)),
        ref_model=transformers_llama(random_model(SMALL, 1)),
        args=trl.DPOConfig(output_dir=str(tmp_path), **SETTINGS, **theirs),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=words(),
    )
    expected = trained_on_all(trainer)

    network = trainable()
    loss = loss_of(DPO(DPOConfig(**settings)), network, referenced(items, trainable(seed=1)))

    assert float(loss.sum.detach()) / 6 == pytest.approx(expected, rel=1e-5)
    require_same_gradients(network, trainer.model)
    require_same_metrics(loss, trainer._metrics["train"], PREFERENCE_METRICS)


def trained_on_all(trainer: Any) -> float:
    """TRL's loss of all its rows in one batch, gone backward."""
    trainer.model.train()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    loss = trainer.compute_loss(trainer.model, batch)
    torch.autograd.backward(loss)
    return float(loss.detach())


@pytest.mark.parametrize(("beta", "moved"), [(0.1, 0), (0.9, 7), (0.9, 3)])
def test_kto_is_that_of_trl(beta: float, moved: int, tmp_path: Path) -> None:
    items: list[Item] = []
    rows = []
    for item in rated(8, seed=2):
        assert isinstance(item, Rated)
        rows.append(
            {"prompt": text(item.prompt), "completion": text(item.completion), "label": item.desirable}
        )
        items.append(Rated(item.prompt, with_end(item.completion), item.desirable))
    network, adapters = adapted(moved=moved)
    trainer = trl.KTOTrainer(
        model=transformers_llama(merged(network)),
        ref_model=transformers_llama(random_model(SMALL)),
        args=trl.KTOConfig(
            output_dir=str(tmp_path), beta=beta, desirable_weight=1.3, undesirable_weight=0.6, **SETTINGS
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=words(),
    )
    expected = trained_on_all(trainer)

    config = KTOConfig(beta=beta, desirable_weight=1.3, undesirable_weight=0.6)
    loss = loss_of(KTO(config), network, items)

    assert float(loss.sum.detach()) / 8 == pytest.approx(expected, rel=1e-5)
    assert (trainer._metrics["train"]["kl"][-1] > 0) == (moved != 3)  # 3 has gone the other way
    require_same_metrics(
        loss,
        trainer._metrics["train"],
        ["kl", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"],
    )
    name, ours = "model.layers.1.mlp.up_proj", dict(adapters.named_parameters())
    weight = dict(trainer.model.named_parameters())[f"{name}.weight"].grad
    a, b = ours[f"{name}.lora_A"], ours[f"{name}.lora_B"]
    scale = 32 / 4  # alpha / rank
    torch.testing.assert_close(a.grad, scale * b.detach().t() @ weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(b.grad, scale * weight @ a.detach().t(), rtol=1e-4, atol=1e-5)


def merged(network: Network) -> Any:
    """The model with its adapters added to its weights."""
    model = random_model(SMALL)
    with torch.no_grad():
        adapters: Any = network._project
        linears = dict(model.named_modules())
        for name, added in adapters.weights().layers.items():
            linears[name].weight += 8.0 * added.b @ added.a
    return model


def orpo_batch(items: Sequence[Item]) -> dict[str, Tensor]:
    """Pairs as TRL's trainer pads and labels them."""
    batch: dict[str, Tensor] = {}
    for which in ("chosen", "rejected"):
        examples = [getattr(item, which) for item in items]
        longest = max(map(len, examples))
        for name, fill, of in (
            ("input_ids", PADDING, lambda e: e.tokens),
            ("attention_mask", 0, lambda e: np.ones(len(e), dtype=np.int64)),
            ("labels", -100, lambda e: np.where(e.trained, e.tokens, -100)),
        ):
            padded = [
                np.pad(of(e).astype(np.int64), (0, longest - len(e)), constant_values=fill) for e in examples
            ]
            batch[f"{which}_{name}"] = torch.from_numpy(np.stack(padded))
    return batch


def orpo_trainer(folder: Path, beta: float) -> Any:
    rows, _ = pair_rows(pairs(2))
    settings = {**SETTINGS, "max_length": 64}
    return trl_orpo.ORPOTrainer(
        model=transformers_llama(random_model(SMALL)),
        args=trl_orpo.ORPOConfig(output_dir=str(folder), beta=beta, **settings),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=words(),
    )


def test_orpo_is_that_of_trl_where_prompts_are_of_one_token_and_lengths_equal(tmp_path: Path) -> None:
    """There TRL's likelihood of prompt and completion, over all tokens, is ours of the completion."""
    items: list[Item] = []
    for item in pairs(6, seed=5, chosen_length=5):
        assert isinstance(item, Pair)
        _, chosen = prompt_and_completion(item.chosen)
        _, rejected = prompt_and_completion(item.rejected)
        items.append(Pair(joined(chosen[:1], chosen[1:]), joined(chosen[:1], rejected)))
    trainer = orpo_trainer(tmp_path, beta=0.4)
    theirs, metrics = trainer.get_batch_loss_metrics(trainer.model, orpo_batch(items))
    theirs.backward()

    network = trainable()
    loss = loss_of(ORPO(ORPOConfig(beta=0.4)), network, items)

    assert float(loss.sum.detach()) / 6 == pytest.approx(float(theirs.detach()), rel=1e-5)
    require_same_gradients(network, trainer.model)
    names = [*PREFERENCE_METRICS, "nll_loss", "log_odds_ratio", "log_odds_chosen"]
    require_same_metrics(loss, {name: [value] for name, value in metrics.items()}, names)


def test_odds_ratios_are_those_of_trl(tmp_path: Path) -> None:
    trainer = orpo_trainer(tmp_path, beta=1.0)
    chosen, rejected = -torch.rand(50).pow(4) * 20 - 1e-6, -torch.rand(50).pow(4) * 20 - 1e-6
    losses, *_ = trainer.odds_ratio_loss(chosen, rejected)
    ours = torch.nn.functional.logsigmoid(log_odds_ratio(chosen, rejected))
    torch.testing.assert_close(ours, losses, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("center", [0.0, 0.1])
def test_reward_models_are_those_of_trl(center: float, tmp_path: Path) -> None:
    network = trainable()
    score = add_score(network.model, seed=4)
    with torch.no_grad():
        score.weight *= 20  # such that scores differ
    fields = {**SMALL.to_hf(), "pad_token_id": PADDING, "num_labels": 1, "attn_implementation": "eager"}
    oracle = LlamaForSequenceClassification(OracleConfig(**fields)).float()
    state = {name: t for name, t in network.model.state_dict().items() if name != "lm_head.weight"}
    oracle.load_state_dict(state)
    rows, items = pair_rows(pairs(6, seed=6))
    trainer = trl.RewardTrainer(
        model=oracle,
        args=trl.RewardConfig(
            output_dir=str(tmp_path), center_rewards_coefficient=center or None, **SETTINGS
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=words(),
    )
    expected = trained_on_all(trainer)

    loss = loss_of(Reward(RewardConfig(center=center)), network, items)

    assert float(loss.sum.detach()) / 6 == pytest.approx(expected, rel=1e-5)
    require_same_gradients(network, trainer.model)
    require_same_metrics(loss, trainer._metrics["train"], ["accuracy", "margin", "mean_reward"])
