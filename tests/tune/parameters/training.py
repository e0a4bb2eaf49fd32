"""One batch through Corral's network and through transformers', with what is trained on either side."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from corral.checkpoints.adapter_reader import PREFIX
from corral.model.llama import Llama
from corral.model.project import plain
from corral.tune.batch import Batch
from corral.tune.examples import Example
from corral.tune.network import Network
from corral.tune.parameters.adapters import Adapters
from tests.peft_adapters import transformers_llama, write_adapter

LENGTHS = (13, 1, 9)


def batch_of(model: Llama, seed: int = 0) -> Batch:
    """Three documents of random tokens; two thirds of them are trained."""
    generator = np.random.default_rng(seed)
    documents = []
    for length in LENGTHS:
        tokens = generator.integers(0, model.config.vocab_size, length).astype(np.int32)
        trained = generator.random(length) < 2 / 3
        trained[0] = False
        documents.append(Example(tokens, trained))
    return Batch.of(documents)


def our_loss(model: Llama, adapters: Adapters | None, batch: Batch) -> Tensor:
    """The mean loss of the trained tokens."""
    return _network(model, adapters).cross_entropy(batch).sum / batch.num_trained


def our_logits(model: Llama, adapters: Adapters | None, batch: Batch) -> Tensor:
    """[T, vocab_size]"""
    hidden = _network(model, adapters).hidden(batch)
    return model.logits(hidden, adapters or plain)


def their_logits(oracle: Any, batch: Batch) -> Tensor:
    """[T, vocab_size]; each document goes through transformers' network alone."""
    documents = [batch.tokens[start:end][None] for start, end in pairwise(batch.bounds)]
    return torch.cat([oracle(document).logits[0] for document in documents])


def their_loss(oracle: Any, batch: Batch) -> Tensor:
    """As `our_loss`."""
    return F.cross_entropy(their_logits(oracle, batch)[batch.rows], batch.targets)


def gradients(loss: Tensor, parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Of a loss, for the parameters that require them."""
    named = {name: parameter for name, parameter in parameters if parameter.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def assert_near(ours: dict[str, Tensor], theirs: dict[str, Tensor], relative: float) -> None:
    """Each differs from the other by no more than this share of its length."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert expected.norm() > 0, name
        difference = (ours[name] - expected).norm()
        assert difference <= relative * expected.norm(), f"{name} differs by {difference / expected.norm()}"


def peft_folder(model: Llama, folder: Path, **options: Any) -> Path:
    """A folder that PEFT wrote, of a random adapter; its magnitudes and biases are not those of the model."""
    write_adapter(model, folder, **options)
    file = folder / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(9)
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith("bias") or "magnitude" in name:
            tensors[name] = tensor * (1 + 0.2 * torch.rand(tensor.shape, generator=generator))
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def their_network(model: Llama, folder: Path, *, bias: str = "none") -> Any:
    """transformers' network with the adapter of a folder to train on, by PEFT."""
    oracle = PeftModel.from_pretrained(transformers_llama(model), str(folder), is_trainable=True).eval()
    for name, parameter in oracle.named_parameters():
        if name.endswith(".bias"):
            parameter.requires_grad_(bias == "all" or (bias == "lora_only" and ".base_layer" in name))
    return oracle


def by_our_names(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """PEFT's names in memory become ours."""
    changes = ((PREFIX, ""), (".default.weight", ""), (".base_layer", ""))
    result = {}
    for name, tensor in named.items():
        for theirs, ours in changes:
            name = name.replace(theirs, ours)
        result[name] = tensor
    return result


def _network(model: Llama, adapters: Adapters | None) -> Network:
    return Network(model) if adapters is None else Network(model, adapters, adapts_head=adapters.adapts_head)
