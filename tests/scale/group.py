"""Two processes that speak to each other; the argument says what goes wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import nn

from corral.scale.errors import ParallelError, ProcessesLostError
from corral.scale.processes import Processes


def main() -> int:
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    with Processes.join(timeout=60) as processes:
        rank = processes.rank
        talk(processes, out)
        try:
            with Processes.join(tensor=3):
                pass
        except ParallelError as error:
            (out / f"uneven-{rank}").write_text(str(error))
    try:
        with Processes.join(timeout=60) as processes:
            if processes.rank == 1:
                raise ParallelError("row 7 has no messages")
            processes.total([1.0])
    except ProcessesLostError as error:
        (out / f"lost-{rank}").write_text(str(error))
        return 1
    except ParallelError as error:
        sys.stderr.write(f"corral: {error}\n")
        return 1
    return 0


def talk(processes: Processes, out: Path) -> None:
    rank = processes.rank
    assert (processes.size, processes.everyone.size, processes.is_first) == (2, 2, rank == 0)
    assert processes.total([0.1 + rank, 2**40 + 1]) == [0.1 + 1.1, 2.0**41 + 2]
    assert processes.broadcast({"seed": rank}) == {"seed": 0}
    assert processes.any(rank == 1)
    assert not processes.any(False)
    assert processes.everyone.agree("full" if rank == 1 else None) == "full"
    assert processes.everyone.agree(None) is None
    processes.barrier()
    with processes.first_alone():
        if rank == 0:
            (out / "cache").write_text("made")
        assert (out / "cache").read_text() == "made"
    gradients(processes)


def gradients(processes: Processes) -> None:
    """Sums in float32: in bfloat16, 1 + 1/256 would be 1."""
    weights = [nn.Parameter(torch.zeros(3, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32)]
    idle = nn.Parameter(torch.zeros(3))
    for weight in weights:
        weight.grad = torch.full((3,), 1.0 if processes.rank else 3 / 256, dtype=weight.dtype)
    processes.sum_gradients([*weights, idle])
    assert idle.grad is None
    for weight in weights:
        assert weight.grad is not None
        assert torch.equal(weight.grad, torch.full((3,), 1 + 3 / 256).to(weight.dtype))


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)
