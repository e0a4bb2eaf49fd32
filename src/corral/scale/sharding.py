"""Fully sharded data parallelism (Rajbhandari et al., 2019, arXiv:1910.02054; Zhao et al., 2023,
arXiv:2304.11277): each process keeps a part of every parameter, and of its gradient and optimizer state.

A layer is whole while it computes. Embedding, last norm and head are a group of their own, which is whole
from the first of them to the end of the backward pass: the head is used outside of the network's `forward`.
"""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from corral.model.llama import Llama


def shard(model: Llama, mesh: DeviceMesh, *, offload: bool = False) -> None:
    """Shards a model over a mesh of one dimension; after `split`, and before what is trained is chosen.

    The backward pass leaves gradients that are summed over the processes, not averaged, in float32 or better.
    Take the parameters by name after this: those of the module are the whole ones at times, and for the
    optimizer those count that are there now. What is not a parameter, such as quantized weights, stays whole
    in each process.

    Args:
        model: on the meta device, or with the same weights in all processes.
        mesh: the processes.
        offload: whether shards, gradients and optimizer states lie in the CPU's memory.
    """
    exact = torch.promote_types(model.dtype, torch.float32)
    policy = MixedPrecisionPolicy(reduce_dtype=exact)
    offloading = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if offload else OffloadPolicy()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, offload_policy=offloading)
    fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=policy, offload_policy=offloading)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # A plain sum, which gloo has too; a factor of 1 by itself would ask NCCL for a scaled one.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def let_go(model: Llama) -> None:
    """Drops whole parameters that an evaluation has left behind.

    They would be used once more: call this after the shards were changed by anything but a training step.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
