"""Tensor parallelism (Shoeybi et al., 2019, arXiv:1909.08053): processes share each product of a layer.

Queries, keys, values, gate and up are cut by their outputs, so that a process has whole heads and whole
columns of the inner state; o and down by their inputs, and their products are summed. Norms, embedding and
head are the same everywhere.
"""

from __future__ import annotations

from math import gcd

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.parallel.style import ParallelStyle

from corral.model.config import LlamaConfig
from corral.model.llama import Llama
from corral.scale.errors import ParallelError

_BY_OUTPUTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
_BY_INPUTS = ("self_attn.o_proj", "mlp.down_proj")


def require_divisible(config: LlamaConfig, processes: int) -> None:
    """Raises ParallelError where heads or columns of a model cannot be shared evenly."""
    counts = {
        "attention heads": config.num_attention_heads,
        "key-value heads": config.num_key_value_heads,
        "columns of the feed-forward network": config.intermediate_size,
    }
    most = gcd(*counts.values())
    for what, count in counts.items():
        if count % processes:
            raise ParallelError(
                f"parallel.tensor is {processes}, but the model has {count} {what}, which {processes} "
                f"processes cannot share evenly; choose a divisor of {most}"
            )


def split(model: Llama, mesh: DeviceMesh) -> None:
    """Gives each process of a mesh of one dimension its part of the layers' matrices.

    The network is on the meta device, or has the same weights in all processes. Attention sees the heads that
    this process has; all else is as it was.

    Raises:
        ParallelError: heads do not divide by the number of processes, or the weights are quantized.
    """
    if mesh.size() == 1:
        return
    require_divisible(model.config, mesh.size())
    for name, module in model.model.layers.named_modules():
        if name.endswith((*_BY_OUTPUTS, *_BY_INPUTS)) and not isinstance(module, nn.Linear):
            raise ParallelError(
                f"parallel.tensor is {mesh.size()}, but the weights of layers.{name} are quantized, which "
                "cannot be split; set it to 1"
            )
    for layer in model.model.layers:
        # Each process cuts its own copy: nothing is sent.
        parallelize_module(layer, mesh, _plan(), src_data_rank=None)


def _plan() -> dict[str, ParallelStyle]:
    plan: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in _BY_OUTPUTS}
    plan.update({name: RowwiseParallel() for name in _BY_INPUTS})
    return plan
