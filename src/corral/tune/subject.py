"""The model of a run: loaded, with what is trained of it chosen, and written when it is done."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from corral.checkpoints.checkpoint import Checkpoint
from corral.checkpoints.hf_writer import SideFiles, write_tensors
from corral.checkpoints.load import load_model
from corral.checkpoints.new_folder import new_folder
from corral.kernels.training.attention import NativePackedCausal
from corral.kernels.training.fused import fused
from corral.kernels.training.kernels import TrainingKernels, torch_on_one_thread
from corral.kernels.training.kernels import load as load_kernels
from corral.model.attention import PackedCausal
from corral.model.llama import Llama
from corral.model.project import plain
from corral.scale.processes import Processes
from corral.tune.activations import checkpoint_activations
from corral.tune.config import ComputeConfig, RunConfig
from corral.tune.errors import TuneError
from corral.tune.network import Network
from corral.tune.objectives.reward import SCORE, add_score, export_reward
from corral.tune.parallel import export_parallel, load_parallel
from corral.tune.parameters.adapters import Adapters
from corral.tune.parameters.folder import adapters_for, base_weights_of, is_quantized, save_adapter
from corral.tune.parameters.full import full

ADAPTER, MODEL = "adapter", "model"
"""Where the weights of a run lie in its folder."""


@dataclass(frozen=True)
class Subject:
    """What is trained.

    Attributes:
        checkpoint: what it was loaded from.
        model: the network.
        adapters: what is trained beside it; None where the model is trained itself.
        parameters: all that is trained, by name.
        network: the network as objectives see it.
    """

    checkpoint: Checkpoint
    model: Llama
    adapters: Adapters | None
    parameters: Mapping[str, Tensor]
    network: Network

    @property
    def num_trained(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def weights(self) -> str:
        """Where its weights go, within the run folder."""
        return MODEL if self.adapters is None else ADAPTER

    def train(self, mode: bool = True) -> None:
        """Turns dropout on, or off."""
        if self.adapters is not None:
            self.adapters.train(mode)

    def save(self, config: RunConfig, folder: Path, processes: Processes | None = None) -> None:
        """Writes the weights into `folder`: an adapter as PEFT does, a model as a Hugging Face folder.

        What was there is replaced once the new one is whole.

        Raises:
            CheckpointError: the disk is full, or cannot be written.
        """
        with _replacing(folder, writes=processes is None or processes.is_first) as new:
            if self.adapters is not None:
                if processes is None or processes.is_first:
                    save_adapter(
                        new, self.adapters, config.model, base_weights_of(config.parameters, self.checkpoint)
                    )
                return
            beside = SideFiles.of(self.checkpoint, self.model.dtype, config.data.prompt_format)
            if config.objective == "reward":
                export_reward(self.model, beside, new)
            elif processes is not None:
                export_parallel(self.parameters, beside, new, processes)
            else:
                _export(self.parameters, beside, new)


def load_subject(
    config: RunConfig,
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    length: int,
    processes: Processes | None,
    stack: ExitStack,
) -> Subject:
    """Loads the model, and chooses what of it is trained.

    Args:
        config: the run.
        checkpoint: of the model.
        device: where to.
        dtype: of weights and activations.
        length: the longest row.
        processes: those that train together.
        stack: what has to be undone in the end.

    Raises:
        CorralError: the weights cannot be loaded, or not be trained like this.
    """
    model = _load(config, checkpoint, device, dtype, length, processes)
    adapters: Adapters | None = None
    if config.parameters.method == "full":
        parameters: dict[str, Tensor] = dict(full(model))
    else:
        adapters = adapters_for(model, config.parameters, torch.Generator().manual_seed(config.seed))
        parameters = dict(adapters.named_parameters())
    if config.objective == "reward":
        parameters[f"{SCORE}.weight"] = add_score(model, config.seed).weight
        parameters = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    kernels = _kernels(config.compute, device, stack)
    if kernels is not None:
        stack.enter_context(fused(model, kernels))
    checkpoint_activations(model, config.compute.checkpointing)
    if config.compute.compile:
        for layer in model.model.layers:
            layer.compile()
    network = Network(
        model,
        plain if adapters is None else adapters,
        adapts_head=adapters is not None and adapters.adapts_head,
        attend=PackedCausal if kernels is None else partial(NativePackedCausal, kernels=kernels),
        loss_chunk=config.compute.loss_chunk,
        kernels=kernels,
    )
    return Subject(checkpoint, model, adapters, parameters, network)


def check_objective(config: RunConfig) -> None:
    """Raises TuneError where a reward model is to be trained otherwise than whole, in one process."""
    if config.objective != "reward":
        return
    if config.parameters.method != "full":
        raise TuneError(
            f"parameters.method is {config.parameters.method!r}, but a reward model is trained whole, with "
            "its new head: set it to full"
        )
    if config.parallel.shard or config.parallel.tensor > 1:
        raise TuneError("a reward model is not sharded: leave parallel.shard and parallel.tensor out")


def _load(
    config: RunConfig,
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    length: int,
    processes: Processes | None,
) -> Llama:
    if processes is not None and (config.parallel.shard or config.parallel.tensor > 1):
        return load_parallel(checkpoint, config.parallel, processes, dtype, length)
    base = config.parameters.base
    # On a CPU unpacking weights at every step takes longer than the step.
    as_stored = is_quantized(checkpoint) and config.parameters.method != "full" and device.type != "cpu"
    return load_model(checkpoint, dtype, device, length, as_stored=as_stored, quantize=base)


def _kernels(compute: ComputeConfig, device: torch.device, stack: ExitStack) -> TrainingKernels | None:
    """The native kernels that a run computes with, if any, while torch keeps to one thread."""
    if device.type != "cpu":
        return None
    if compute.threads is not None:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(compute.threads)
    if compute.compile:  # which makes code of its own
        return None
    kernels = load_kernels(compute.threads)
    if kernels is not None:
        stack.callback(kernels.close)
        stack.enter_context(torch_on_one_thread())
    return kernels


def _export(parameters: Mapping[str, Tensor], beside: SideFiles, out: Path) -> None:
    with new_folder(out, sum(tensor.nbytes for tensor in parameters.values())) as folder:
        tensors = ((name, tensor.detach().cpu().contiguous()) for name, tensor in parameters.items())
        write_tensors(folder, tensors)
        beside.write(folder)


@contextmanager
def _replacing(folder: Path, *, writes: bool) -> Iterator[Path]:
    """A folder to write that takes the place of another, which stays until the new one is whole."""
    if not writes or not folder.exists():
        yield folder
        return
    new, old = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    yield new
    folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
