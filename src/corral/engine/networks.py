"""Networks as an engine runs them: modules of torch, or packed for the native kernels of a CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch

from corral.checkpoints.checkpoint import Checkpoint
from corral.checkpoints.load import checked, load_model, quantizing
from corral.devices import pick_dtype
from corral.engine.cache.storage import KVStorage
from corral.engine.options import EngineOptions
from corral.engine.run.adapters import AdapterSet
from corral.engine.run.graphs import CudaCapture, GraphRunner
from corral.engine.run.native_runner import NativeRunner
from corral.engine.run.runner import Runner, TorchRunner
from corral.errors import RequestError
from corral.kernels.keeping import Keeping
from corral.kernels.library import Library, Pool, load
from corral.kernels.memory import Memory
from corral.kernels.packed_cache import CacheKey, PackedCache
from corral.kernels.packed_file import PackedWeights
from corral.kernels.packed_llama import TABLE, PackedLlama, pack_llama, pack_weights
from corral.model.llama import Llama
from corral.quant import Weight
from corral.quant.linear import QuantizedLinear

logger = logging.getLogger(__name__)

Network = Llama | PackedLlama

_WORTH_KEEPING = 8 * 10**6  # bytes: packing takes 30 ms for each MB, reading what was packed 2 ms


def native_library(options: EngineOptions, device: torch.device) -> Library | None:
    """The native kernels, where the device is a CPU and the options let them run.

    Raises:
        RequestError: the options ask for native kernels, and there are none.
    """
    if options.kernels == "torch":
        return None
    library = load() if device.type == "cpu" else None
    if library is None and options.kernels == "native":
        where = "are not built here" if device.type == "cpu" else f"do not run on {device}"
        raise RequestError(f"kernels is 'native', but the native kernels {where}; leave it at 'auto'")
    return library


def load_network(
    checkpoint: Checkpoint,
    dtype: str,
    device: torch.device,
    options: EngineOptions,
    notice: Callable[[str], None] = logger.info,
) -> Network:
    """A checkpoint's network, ready to run.

    With a `dtype` of "auto", quantized weights stay as they are, but on a CPU without native kernels: there
    unpacking them at every step takes four times as long as the step. A type that is named is that of all
    weights, but for those that `options.quantize` makes smaller. What was packed for the native kernels is
    kept for the next time, unless it is small; `notice` is told where that cannot be.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of the wrong shape; the message names it.
        RequestError: there is no such type, or no such kernels.
    """
    kind = pick_dtype(dtype, device)
    library = native_library(options, device)
    if library is None:
        return _load_for_torch(checkpoint, kind, device, options, dtype == "auto" and device.type != "cpu")
    as_stored = dtype == "auto" or options.quantize is not None
    network = Llama.on_meta(checkpoint.config, options.max_model_len)
    cache = PackedCache()
    facts: dict[str, str | bool] = {"as_stored": dtype == "auto", "dtype": str(kind).removeprefix("torch.")}
    if options.quantize is not None:
        facts["quantize"] = options.quantize
    key = CacheKey.of(checkpoint.files, facts)
    # Read, not mapped: in huge pages the weights stream faster, and what they take shows as memory in use.
    kept = cache.load(key, Memory(), check_content=True) if cache.limit else None
    if kept is not None and _fits(network, kept):
        return PackedLlama(library, network, kind, kept.matrices, kept.tensors)
    weights = checked(checkpoint, network, checkpoint.weights() if as_stored else checkpoint.tensors())
    if options.quantize is not None:
        weights = quantizing(checkpoint, weights, options.quantize)
    packed = pack_weights(library, network, _in_type(weights, kind), kind)
    if cache.limit and packed.num_bytes >= _WORTH_KEEPING:
        Keeping(cache, key, packed, notice)
    return packed


def _load_for_torch(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, options: EngineOptions, as_stored: bool
) -> Llama:
    length, scheme = options.max_model_len, options.quantize
    model = load_model(checkpoint, dtype, device, length, as_stored=as_stored, quantize=scheme)
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.exact = options.exact_activations
    return model


def _fits(network: Llama, kept: PackedWeights) -> bool:
    """Whether these are all the weights of the network, in its shapes."""
    shapes = {name.removesuffix(".weight"): tensor.shape for name, tensor in network.state_dict().items()}
    sizes = {name: shape[0] for name, shape in shapes.items() if len(shape) == 1 and ".bias" not in name}
    biased = {name.removesuffix(".bias") for name in shapes if name.endswith(".bias")}
    missing = {name for name, shape in shapes.items() if len(shape) == 2}
    for joined, matrix in kept.matrices.items():
        names = joined.split("+")
        if not missing.issuperset(names) or {shapes[name][1] for name in names} != {matrix.shape[1]}:
            return False
        missing.difference_update(names)
        if matrix.shape[0] != sum(shapes[name][0] for name in names):
            return False
        if biased.intersection(names):
            sizes[f"{joined}.bias"] = matrix.shape[0]
    tied = network.config.tie_word_embeddings
    found = {name.removesuffix(".weight"): vector.shape for name, vector in kept.tensors.items()}
    return found == {name: (size,) for name, size in sizes.items()} and missing <= (
        {TABLE} if tied else set()
    )


def _in_type(weights: Iterator[tuple[str, Weight]], dtype: torch.dtype) -> Iterator[tuple[str, Weight]]:
    for name, weight in weights:
        is_matrix = isinstance(weight, torch.Tensor) and weight.dim() == 2
        yield name, weight.to(dtype) if is_matrix and isinstance(weight, torch.Tensor) else weight


def _is_quantized(network: Llama) -> bool:
    return any(isinstance(module, QuantizedLinear) for module in network.modules())


class Runners:
    """Makes the runners of an engine, which share its threads.

    Args:
        options: which kernels, and how many threads.
        device: where the networks are.
    """

    def __init__(self, options: EngineOptions, device: torch.device) -> None:
        self._options = options
        self._library = native_library(options, device)
        self._pool = None if self._library is None else Pool(self._library, options.threads)
        if self._library is None and device.type == "cpu" and options.threads is not None:
            torch.set_num_threads(options.threads)

    def prepare(self, network: Network, *, is_draft: bool = False) -> Network:
        """The network as it is run: packed, where native kernels run it.

        Raises:
            RequestError: the options ask for quantized weights, and this network was loaded without.
        """
        if isinstance(network, PackedLlama):
            return network
        if self._options.quantize is not None and not is_draft and not _is_quantized(network):
            raise RequestError(
                "quantize is for weights that are read; those of this network are there already"
            )
        return network if self._library is None else pack_llama(self._library, network)

    def runner(self, network: Network, storage: KVStorage, adapters: AdapterSet) -> Runner:
        """A runner of a network that is prepared."""
        if isinstance(network, PackedLlama):
            assert self._pool is not None
            exact = self._options.exact_activations
            return NativeRunner(network, storage, adapters, self._pool, exact=exact)
        if network.device.type == "cuda":
            return GraphRunner(network, storage, adapters, CudaCapture())
        return TorchRunner(network, storage, adapters)
