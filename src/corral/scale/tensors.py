"""Tensors that are spread over processes (DTensors): the part of one process, and the whole again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

DATA, TENSOR = "data", "tensor"
"""The dimensions of the mesh of processes."""


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, or the tensor itself; the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded_over_data(parameter: Tensor) -> bool:
    """Whether processes that see different rows hold different parts of a parameter."""
    return isinstance(parameter, DTensor) and DATA in (parameter.device_mesh.mesh_dim_names or ())


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that it has whole, spread as `like` is; a view.

    A matrix that is shared along "tensor" and sharded along "data" is cut along "tensor" first, also where
    both cut the same rows.
    """
    if not isinstance(like, DTensor):
        return whole
    mesh, part = like.device_mesh, whole
    for dim in reversed(range(mesh.ndim)):
        place = like.placements[dim]
        if place.is_replicate():
            continue
        cut = getattr(place, "dim", None)
        assert isinstance(cut, int), "parameters are cut or repeated"
        chunks = part.chunk(mesh.size(dim), cut)
        mine = mesh.get_local_rank(dim)
        part = chunks[mine] if mine < len(chunks) else part.narrow(cut, 0, 0)
    return part


@torch.no_grad()
def whole_of(tensor: Tensor) -> Tensor:
    """A tensor whole, on this process's device. All that it is spread over call this together."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    mesh, part = tensor.device_mesh, tensor.to_local().to(tensor.device_mesh.device_type)
    there = DTensor.from_local(
        part, mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
    for dim in range(mesh.ndim):  # one after the other, as they were cut last
        places = [Replicate() if i <= dim else place for i, place in enumerate(tensor.placements)]
        there = there.redistribute(placements=places)
    return there.to_local()


def whole_tensors(tensors: Mapping[str, Tensor], *, keep: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Tensors whole, one after the other, in the CPU's memory.

    All processes go through this together. Those that do not `keep` anything get empty tensors.
    """
    for name, tensor in tensors.items():
        whole = whole_of(tensor)
        yield name, whole.cpu().contiguous() if keep else whole.new_empty(0)
