"""What several processes do in the tests; run by `corral.tune.launch`. The first notes what came of it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh

from corral.checkpoints.hf_writer import SideFiles
from corral.checkpoints.source import open_checkpoint
from corral.errors import CorralError
from corral.scale.processes import Processes
from corral.scale.tensors import local
from corral.tune.config import ParallelConfig
from corral.tune.feed import Position
from corral.tune.parallel import export_parallel, load_parallel
from corral.tune.reference import model_hash
from corral.tune.saving import Checkpoints, Standing
from corral.tune.sharded_store import ShardedStore
from tests.tune.parallel.cases import CASES, CHECKPOINTED, TENSOR
from tests.tune.parallel.runs import Case, Outcome, Run


def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    with Processes.join() as processes:
        world = processes.everyone.size
        for name, case in CASES[world].items():
            note(processes, out / f"{name}.pt", Run(case, arranged(processes, case.tensor)).steps(3))
        for name, case in CHECKPOINTED[world].items():
            save(processes, out, name, case)
        for tensor in TENSOR[world]:
            load_and_export(processes, out, tensor)
        if len(sys.argv) > 2:
            for name, case in CHECKPOINTED[2].items():
                resume(processes, Path(sys.argv[2]), out, name, case)


def arranged(processes: Processes, tensor: int) -> Processes:
    """The same processes, as another mesh."""
    size = processes.everyone.size
    mesh = init_device_mesh("cpu", (size // tensor, tensor), mesh_dim_names=("data", "tensor"))
    return Processes(processes.device, mesh, processes.store)


def save(processes: Processes, out: Path, name: str, case: Case) -> None:
    """Saves after two steps and makes a third; resumed, the third is the same."""
    run = Run(case, arranged(processes, case.tensor))
    checkpoints = Checkpoints(out / name, {}, store=ShardedStore(run.model), processes=processes.everyone)
    run.steps(2)
    checkpoints.save(Standing(2, Position(0, 2)), run.parameters, run.optimizer)
    note(processes, out / f"{name}-third.pt", run.steps(1, start=2))
    again = Run(case, arranged(processes, case.tensor), seed=7)
    again.steps(1)  # other weights, and a network that has been used
    with torch.no_grad():
        again.network.hidden(again.batch())  # which leaves whole weights behind
    other = Checkpoints(out / name, {}, store=ShardedStore(again.model), processes=processes.everyone)
    other.restore(2, again.parameters, again.optimizer)
    note(processes, out / f"{name}-resumed.pt", again.steps(1, start=2))


def resume(processes: Processes, before: Path, out: Path, name: str, case: Case) -> None:
    """Makes the third step after a checkpoint of another number of processes."""
    run = Run(case, arranged(processes, case.tensor), seed=7)
    take(run, before / name / "step-000002")
    note(processes, out / f"{name}-resumed-from-2.pt", run.steps(1, start=2))


def take(run: Run, folder: Path) -> None:
    """Takes on what a checkpoint holds."""
    wanted = {"parameters": run.parameters, "optimizer": run.optimizer.state_dict()}
    run.optimizer.load_state_dict(ShardedStore(run.model).read(folder, wanted)["optimizer"])


def load_and_export(processes: Processes, out: Path, tensor: int) -> None:
    """Loads a folder in parts, and writes it again."""
    processes = arranged(processes, tensor)
    checkpoint = open_checkpoint(out.parent / "model")
    parallel = ParallelConfig(shard=True, tensor=tensor)
    model = load_parallel(checkpoint, parallel, processes)
    parameters = dict(model.named_parameters())
    mine = [local(parameter).numel() for parameter in parameters.values()]
    name = f"{processes.everyone.size}-{tensor}"
    (out / f"numbers-{name}-{processes.everyone.rank}").write_text(str(sum(mine)))
    (out / f"hash-{name}-{processes.everyone.rank}").write_text(model_hash(model))
    export_parallel(parameters, SideFiles.of(checkpoint), out / f"exported-{name}", processes)
    trouble = ""
    try:
        export_parallel(parameters, SideFiles.of(checkpoint), out / f"exported-{name}", processes)
    except CorralError as error:
        trouble = str(error)
    (out / f"trouble-{name}-{processes.everyone.rank}").write_text(trouble)


def note(processes: Processes, file: Path, outcome: Outcome) -> None:
    if processes.is_first:
        torch.save(vars(outcome), file)


if __name__ == "__main__":
    main()
