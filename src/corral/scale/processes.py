"""The processes that work on one model: who they are, and what they tell each other.

torchrun (or `corral tune --nproc`) starts them, each with a device of its own. They form a mesh of two
dimensions: along "data" they see different rows; along "tensor" they see the same rows and share each matrix
product.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from corral.scale.errors import ParallelError, ProcessesLostError
from corral.scale.launched import note_lost, watch_launcher
from corral.scale.sums import sum_over
from corral.scale.tensors import DATA, TENSOR, is_sharded_over_data, local

T = TypeVar("T")

TIMEOUT = 600.0
"""Seconds after which a process that waits for another gives up."""

_FIRST_MAY_TAKE = timedelta(days=7)


def is_one_of_many() -> bool:
    """Whether this process was started as one of several (or as the only one) by torchrun."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


class Everyone:
    """All processes of the run, whatever they see: those that save together."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def agree(self, trouble: str | None) -> str | None:
        """Waits for all; gives the trouble of the first that has any."""
        troubles: list[str | None] = [None] * self.size
        dist.all_gather_object(troubles, trouble)
        return next((told for told in troubles if told is not None), None)


class Processes:
    """The processes of the run, from one of them; leave them by `with`.

    Small things travel over the CPU's network, so that nothing waits for a GPU.

    Attributes:
        rank: which share of the rows this process sees; the same along "tensor".
        size: how many shares there are.
        everyone: all processes.
        device: this process's.
        mesh: of the two dimensions "data" and "tensor".
        store: where they leave notes for each other.
    """

    def __init__(self, device: torch.device, mesh: DeviceMesh, store: Store) -> None:
        self.device, self.mesh, self.store = device, mesh, store
        self.rank, self.size = mesh[DATA].get_local_rank(), mesh[DATA].size()
        self.everyone = Everyone(dist.get_rank(), dist.get_world_size())
        self._turns = 0

    @classmethod
    def join(cls, device_type: str = "cpu", tensor: int = 1, timeout: float = TIMEOUT) -> Processes:
        """Joins the others, by the variables that torchrun sets.

        Args:
            device_type: "cpu" (gloo) or "cuda" (NCCL, and gloo for what is small).
            tensor: how many share each matrix product; neighbours by rank, so mostly of one machine.
            timeout: seconds after which a process that waits for another gives up.

        Raises:
            ParallelError: this process was not started as one of several, there is no device for it, or their
                number is no multiple of `tensor`.
            ProcessesLostError: the others cannot be reached.
        """
        watch_launcher()
        rank, world, place = (_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        if world % tensor:
            raise ParallelError(
                f"parallel.tensor is {tensor}, which does not divide {world} processes; start a multiple of "
                f"{tensor}, or choose a divisor of {world}"
            )
        device = _device(device_type, place)
        backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
        wait = timedelta(seconds=timeout)
        try:
            shared, _, _ = next(iter(rendezvous("env://", rank, world, timeout=wait)))
            # A group that was left before has other addresses there.
            store = PrefixStore(f"group {shared.add(f'joined by {rank}', 1)}", shared)
            dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=wait)
        except (ValueError, RuntimeError) as error:
            raise _lost(error) from error
        mesh = init_device_mesh(device.type, (world // tensor, tensor), mesh_dim_names=(DATA, TENSOR))
        return cls(device, mesh, PrefixStore("corral", store))

    @property
    def is_first(self) -> bool:
        """Whether this one speaks and writes for all."""
        return self.everyone.rank == 0

    @property
    def data(self) -> DeviceMesh:
        """Those that see different rows, and hold the same part of each matrix product."""
        return self.mesh[DATA]

    @property
    def tensor(self) -> DeviceMesh:
        """Those that see the same rows."""
        return self.mesh[TENSOR]

    def total(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all shares of the rows, in float64."""
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums, group=self.data.get_group())
        return cast("list[float]", sums.tolist())

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Makes each gradient the sum over all shares of the rows.

        The gradients of parameters that are sharded over them are so already, by the backward pass.
        """
        gradients = [p.grad for p in parameters if p.grad is not None and not is_sharded_over_data(p)]
        sum_over(self.data.get_group(), [local(gradient) for gradient in gradients])

    def any(self, said: bool) -> bool:
        """Whether any process says so, such as that it was asked to stop."""
        votes = torch.tensor(int(said))
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes)

    def broadcast(self, value: T) -> T:
        """The first process's value, small and of a kind that pickle takes, in all of them."""
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def barrier(self) -> None:
        """Waits until all are here."""
        dist.all_reduce(torch.zeros(1))

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process does what is inside while the others wait, however long it takes; then they do.

        For what is read from a cache once somebody has written it. A wait like this has no timeout, unlike
        that for a sum.

        Raises:
            ProcessesLostError: it failed in the first process.
        """
        self._turns += 1
        key = f"turn {self._turns}"
        if not self.is_first:
            self.store.wait([key], _FIRST_MAY_TAKE)
            if self.store.get(key) != b"done":
                note_lost()
                raise ProcessesLostError("the first process of this run failed; what it says tells why")
            yield
            return
        outcome = "failed"
        try:
            yield
            outcome = "done"
        finally:
            self.store.set(key, outcome)

    def leave(self) -> None:
        """Ends the group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or self.device.type == "cpu":
            self.leave()  # after an error NCCL would wait for the others
        if _is_loss(error):
            raise _lost(error) from error


def _is_loss(error: BaseException | None) -> bool:
    """Whether an error says that another process is gone: those of torch have no type of their own."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(
        word in str(error) for word in ("gloo", "NCCL", "ncclComm")
    )


def _lost(error: BaseException | None) -> ProcessesLostError:
    note_lost()
    lines = str(error).strip().splitlines() or ["no reason given"]
    return ProcessesLostError(
        f"another process of this run ended or stopped answering; what it says tells why ({lines[0][:200]})"
    )


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if name == "LOCAL_RANK" and not text:
        return 0
    if not text.isdecimal():
        found = f"is {text!r}" if text else "is not set"
        raise ParallelError(f"{name} {found}, but this process is to be one of several: start it by torchrun")
    return int(text)


def _device(kind: str, place: int) -> torch.device:
    if kind == "cpu":
        return torch.device("cpu")
    if kind != "cuda":
        raise ParallelError(f"compute.device is {kind!r}; several processes work on 'cpu' or 'cuda'")
    if place >= torch.cuda.device_count():
        raise ParallelError(
            f"process {place} of this machine has no GPU, as there are {torch.cuda.device_count()}; start "
            "one process for each GPU"
        )
    device = torch.device("cuda", place)
    torch.cuda.set_device(device)
    return device
