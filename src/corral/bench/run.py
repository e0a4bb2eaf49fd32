"""A benchmark from a model's name to its numbers."""

from __future__ import annotations

import platform
import resource
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

import corral
from corral.bench.bandwidth import kv_read, read_bandwidth, weights_read
from corral.bench.measure import ManyRequests, SingleRequest, measure_many, measure_single, warm_up
from corral.bench.weights import WEIGHTS, random_llama, random_packed, random_weights
from corral.bench.workload import Workload
from corral.checkpoints.report import Report, silent
from corral.checkpoints.source import open_model
from corral.devices import memory_in_words, pick_device, pick_dtype
from corral.engine.build import build_engine
from corral.engine.cache.storage import resolve_kv_dtype
from corral.engine.engine import Engine
from corral.engine.networks import Network, native_library
from corral.engine.options import EngineOptions
from corral.errors import RequestError
from corral.kernels.packed_llama import PackedLlama, pack_weights
from corral.llm import LLM
from corral.model.config import LlamaConfig
from corral.model.llama import Llama
from corral.model.presets import PRESETS, find_preset
from corral.plan import Devices, Inference, make_plan, parse_devices
from corral.plan.report import size

GB = 10**9


@dataclass(frozen=True)
class Setup:
    """What runs a workload, and how.

    Attributes:
        model: as `LLM` takes it; with `random_weights` the name of a preset.
        dtype, device: as `LLM` takes them.
        random_weights: make weights up instead of reading any file.
        weights: the form of those, for the native kernels: one of `WEIGHTS`, or "auto" for plain ones.
        engine: options of the engine by their names, see `EngineOptions`.
    """

    model: str
    dtype: str = "auto"
    device: str = "auto"
    random_weights: bool = False
    weights: str = "auto"
    engine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What was measured. `dtype` is the type of activations, and `weights` names the types of the matrices.
    `bandwidth` is what one request's decoding reads in a second, and `peak_bandwidth` what this machine reads
    at most, both in bytes."""

    setup: Setup
    workload: Workload
    single: SingleRequest
    many: ManyRequests
    dtype: str
    weights: str
    kv_cache_dtype: str
    device: str
    kernels: str
    threads: int
    peak_rss: int
    peak_device: int | None
    bandwidth: float
    peak_bandwidth: float

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, as `corral bench --json` prints it."""
        return {
            "model": self.setup.model,
            "dtype": self.dtype,
            "weights": self.weights,
            "device": self.device,
            "kernels": self.kernels,
            "threads": self.threads,
            "prefill_tok_s": self.single.prefill_tok_s,
            "decode_tok_s": self.single.decode_tok_s,
            "output_tok_s": self.many.output_tok_s,
            "ttft_ms": self.many.ttft_ms,
            "itl_ms": self.many.itl_ms,
            "seconds": self.many.seconds,
            "tokens_per_step": self.single.tokens_per_step,
            "peak_rss_bytes": self.peak_rss,
            "peak_device_bytes": self.peak_device,
            "bandwidth_gb_s": self.bandwidth / GB,
            "bandwidth_share": self.bandwidth / self.peak_bandwidth,
            "read_bandwidth_gb_s": self.peak_bandwidth / GB,
            "settings": {
                **asdict(self.workload),
                "random_weights": self.setup.random_weights,
                **{name: value for name, value in self.setup.engine.items() if value is not None},
                "kv_cache_dtype": self.kv_cache_dtype,
            },
            "versions": {
                "corral": corral.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "machine": platform.machine(),
            },
        }


def run_bench(setup: Setup, workload: Workload, report: Report = silent) -> Result:
    """Loads a model, runs a workload on it, and measures the memory.

    Raises:
        CorralError: the model cannot be found, read or run as asked; the message says why.
    """
    device = pick_device(setup.device)
    dtype = pick_dtype(setup.dtype, device)
    options = EngineOptions.of({"max_model_len": workload.length, **setup.engine})
    config, form = _config(setup, dtype, report)
    workload.check(config)
    library = native_library(options, device)
    if setup.weights != "auto":
        _check_weights(setup, is_native=library is not None)
    _check_memory(
        setup.model, config, form if library is not None else _name(dtype), device, options, workload
    )
    with _engine(setup, config, options, dtype, device, report) as (engine, network):
        read, weights = weights_read(network), _weights(network)
        warm_up(engine, workload, config.vocab_size)
        single = measure_single(engine, workload, config.vocab_size)
        many = measure_many(engine, workload, config.vocab_size)
    peak_rss = _peak_rss()  # before the buffer below is taken
    kv_dtype = resolve_kv_dtype(options.kv_cache_dtype, dtype)
    per_step = read + kv_read(config, kv_dtype, workload.prompt_tokens, workload.new_tokens)
    return Result(
        setup=setup,
        workload=workload,
        single=single,
        many=many,
        dtype=_name(dtype),
        weights=weights,
        kv_cache_dtype=kv_dtype,
        device=_device_name(device),
        kernels="torch" if library is None else f"native {library.isa}",
        threads=torch.get_num_threads() if library is None else options.threads or library.cores,
        peak_rss=peak_rss,
        peak_device=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        bandwidth=per_step * single.decode_tok_s / single.tokens_per_step,
        peak_bandwidth=read_bandwidth(device),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _weights(network: Network) -> str:
    """The types of the matrices, those with the most bytes first."""
    if not isinstance(network, PackedLlama):
        return _name(network.dtype)
    sizes: Counter[str] = Counter()
    for matrix in network.matrices.values():
        kind = matrix.layout.codes.name.lower()
        sizes[{"f32": "float32", "bf16": "bfloat16"}.get(kind, kind)] += matrix.num_bytes
    return " + ".join(kind for kind, _ in sizes.most_common())


def _check_weights(setup: Setup, *, is_native: bool) -> None:
    if setup.weights not in WEIGHTS:
        raise RequestError(f"weights is {setup.weights!r}; it must be auto, {' or '.join(WEIGHTS)}")
    if not setup.random_weights:
        raise RequestError(f"weights is {setup.weights!r}, which goes with random weights")
    if not is_native:
        raise RequestError(f"weights is {setup.weights!r}, which only the native kernels of a CPU can read")


def _config(setup: Setup, dtype: torch.dtype, report: Report) -> tuple[LlamaConfig, str]:
    """The model's shape, and a format of `corral plan` that its weights take about as much as on native
    kernels. Of random weights nothing is read."""
    if not setup.random_weights:
        checkpoint = open_model(setup.model, report)
        is_quantized = setup.dtype == "auto" and checkpoint.format == "gguf"
        narrow = is_quantized and not {"F32", "F16", "BF16"}.issuperset(checkpoint.storage)
        return checkpoint.config, "int4" if narrow else _name(dtype)
    preset = find_preset(setup.model)
    if preset is None:
        raise RequestError(
            f"{setup.model!r} is no known model; random weights are made for {', '.join(sorted(PRESETS))}"
        )
    return preset.config, {"q4_0": "int4", "q8_0": "int8"}.get(setup.weights, _name(dtype))


def _check_memory(
    model: str,
    config: LlamaConfig,
    weights: str,
    device: torch.device,
    options: EngineOptions,
    workload: Workload,
) -> None:
    """Refuses a model of which this device cannot hold even one sequence, before anything is loaded."""
    work = Inference(
        context=workload.length,
        dtype=weights,
        kv_dtype=None if options.kv_cache_dtype == "auto" else options.kv_cache_dtype,
        prefill_chunk=options.scheduler(device.type).prefill_chunk,
    )
    plan = make_plan(config, work, _devices(device), model)
    if not plan.fits:
        raise RequestError(
            f"{model} takes {size(plan.total)} in {work.dtype}, and {plan.devices.name} has "
            f"{size(plan.devices.usable)}; `corral plan` shows what fits"
        )


def _devices(device: torch.device) -> Devices:
    if device.type != "cuda":
        return parse_devices("cpu")
    return Devices(_device_name(device), 1, torch.cuda.mem_get_info(device)[1])


@contextmanager
def _engine(
    setup: Setup,
    config: LlamaConfig,
    options: EngineOptions,
    dtype: torch.dtype,
    device: torch.device,
    report: Report,
) -> Iterator[tuple[Engine, Network]]:
    if not setup.random_weights:
        given = {"max_model_len": options.max_model_len, **setup.engine}
        with LLM(setup.model, dtype=setup.dtype, device=setup.device, report=report, **given) as llm:
            yield llm.engine, llm.network
        return
    speculative = options.speculative_config
    if speculative is not None and speculative.model is not None:
        raise RequestError("random weights agree with no smaller model; leave one of the two out")
    with memory_in_words(device):
        network = _random_network(setup, config, options, dtype, device)
        engine = build_engine(network, None, options, None, report.notice)
    try:
        yield engine, network
    finally:
        engine.close()


def _random_network(
    setup: Setup, config: LlamaConfig, options: EngineOptions, dtype: torch.dtype, device: torch.device
) -> Network:
    library = native_library(options, device)
    if library is None:
        return random_llama(config, dtype, device)
    if setup.weights != "auto":
        return random_packed(library, config, WEIGHTS[setup.weights], dtype)
    # Packed as they are made: a large model has no room here twice.
    return pack_weights(library, Llama.on_meta(config), random_weights(config, dtype, device), dtype)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _peak_rss() -> int:
    """Bytes; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
