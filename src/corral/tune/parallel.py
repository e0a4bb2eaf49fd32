"""A run on many devices: what can be combined, and models that are loaded and written in parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from corral.checkpoints.checkpoint import Checkpoint
from corral.checkpoints.hf_writer import SideFiles, write_tensors
from corral.checkpoints.load import checked, load_model
from corral.checkpoints.new_folder import new_folder
from corral.errors import CorralError
from corral.model.llama import Llama
from corral.scale.filling import fill
from corral.scale.processes import Processes
from corral.scale.sharding import shard
from corral.scale.tensor_parallel import require_divisible, split
from corral.scale.tensors import whole_tensors
from corral.tune.config import ParallelConfig, RunConfig
from corral.tune.errors import TuneError


def require_possible(config: RunConfig, processes: int) -> None:
    """Refuses settings that do not go together on this many processes.

    Raises:
        TuneError: they do not; the message names them.
    """
    parallel, parameters = config.parallel, config.parameters
    spread = parallel.shard or parallel.tensor > 1
    if processes % parallel.tensor:
        raise TuneError(
            f"parallel.tensor is {parallel.tensor}, which does not divide the number of processes, "
            f"{processes}; start {parallel.tensor} or a multiple of it with --nproc"
        )
    if parallel.shard and processes == 1:
        raise TuneError(
            "parallel.shard is true, but there is one process only; start several with --nproc, or set it "
            "to false"
        )
    if parallel.cpu_offload and not parallel.shard:
        raise TuneError("parallel.cpu_offload needs shards to lie there: set parallel.shard to true too")
    if parallel.tensor > 1 and parameters.method != "full":
        raise TuneError(
            f"parallel.tensor is {parallel.tensor}, but parameters.method is {parameters.method!r}: adapters "
            "cannot be split; set it to 1, and parallel.shard to true where a device is too small"
        )
    if parallel.shard and parameters.base is not None:
        raise TuneError(
            f"parallel.shard is true, but parameters.base is {parameters.base!r}: quantized weights are "
            "small and stay whole on each device; set it to false"
        )
    if spread and config.optimizer.name == "adamw_8bit":
        raise TuneError(
            "optimizer.name is adamw_8bit, whose states cannot be spread over devices; take adamw (with "
            "optimizer.states bfloat16, where memory is short), or no parallel.shard and parallel.tensor"
        )


def load_parallel(
    checkpoint: Checkpoint,
    parallel: ParallelConfig,
    processes: Processes,
    dtype: torch.dtype | None = None,
    context_length: int | None = None,
) -> Llama:
    """The network with the checkpoint's weights, as `load_model` gives it; each process has its part.

    No process ever has more than its part and one whole tensor; of a folder of safetensors it reads only its
    part. Call it before what is trained is chosen.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of the wrong shape.
        ParallelError: the model cannot be split like this.
    """
    if parallel.tensor == 1 and not parallel.shard:
        return load_model(checkpoint, dtype, processes.device, context_length)
    require_divisible(checkpoint.config, parallel.tensor)
    model = meta_model(checkpoint, dtype, context_length)
    split(model, processes.tensor)
    if parallel.shard:
        shard(model, processes.data, offload=parallel.cpu_offload)
    weights = checked(checkpoint, Llama.on_meta(checkpoint.config), checkpoint.tensors())
    fill(model, weights, processes.device, offload=parallel.cpu_offload)
    return model.requires_grad_(False).eval()


def meta_model(
    checkpoint: Checkpoint, dtype: torch.dtype | None = None, context_length: int | None = None
) -> Llama:
    """The network of a checkpoint without memory, in a type; its own by default."""
    model = Llama.on_meta(checkpoint.config, context_length)
    frequencies = model.inverse_frequencies
    model.to(dtype or getattr(torch, checkpoint.config.dtype))
    model.inverse_frequencies = frequencies
    return model


def export_parallel(
    parameters: Mapping[str, Tensor], beside: SideFiles, out: Path, processes: Processes
) -> None:
    """Writes a model whose parts are spread over processes as a Hugging Face folder, by the first of them.

    Its tensors are put together one after the other. All processes call this together. The folder appears
    whole or not at all.

    Args:
        parameters: all of the model's by name, as they were when it was loaded.
        beside: the other files of the folder.
        out: the folder; must not exist yet, or be empty.

    Raises:
        CheckpointError: `out` exists and is not empty, or the disk is full.
        TuneError: that is so in the first process.
    """
    tensors = whole_tensors(parameters, keep=processes.is_first)
    trouble: CorralError | None = None
    try:
        if processes.is_first:
            with new_folder(out, sum(tensor.nbytes for tensor in parameters.values())) as folder:
                write_tensors(folder, tensors)
                beside.write(folder)
    except CorralError as error:
        trouble = error
    _exhaust(tensors)  # whoever writes or not, all take part in putting each tensor together
    told = processes.everyone.agree(None if trouble is None else str(trouble))
    if trouble is not None:
        raise trouble
    if told is not None:
        raise TuneError(told)


def _exhaust(tensors: Iterator[tuple[str, Tensor]]) -> None:
    for _ in tensors:
        pass
