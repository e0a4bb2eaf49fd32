"""A benchmark from a model's name to its numbers."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

import corral
from corral.bench.bandwidth import kv_read, read_bandwidth, weights_read
from corral.bench.measure import ManyRequests, SingleRequest, measure_many, measure_single, warm_up
from corral.bench.weights import random_llama
from corral.bench.workload import Workload
from corral.checkpoints.report import Report, silent
from corral.checkpoints.source import open_model
from corral.devices import memory_in_words, pick_device, pick_dtype
from corral.engine.build import build_engine
from corral.engine.cache.storage import resolve_kv_dtype
from corral.engine.engine import Engine
from corral.engine.options import EngineOptions
from corral.errors import RequestError
from corral.llm import LLM
from corral.model.config import LlamaConfig
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
        threads: of torch on the CPU; None leaves it to torch.
        random_weights: make weights up instead of reading any file.
        engine: options of the engine by their names, see `EngineOptions`.
    """

    model: str
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None
    random_weights: bool = False
    engine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What was measured. `bandwidth` is what one request's decoding reads in a second, and `peak_bandwidth`
    what this machine reads at most, both in bytes."""

    setup: Setup
    workload: Workload
    single: SingleRequest
    many: ManyRequests
    dtype: str
    kv_cache_dtype: str
    device: str
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
            "device": self.device,
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
    if setup.threads is not None:
        _set_threads(setup.threads)
    device = pick_device(setup.device)
    dtype = pick_dtype(setup.dtype, device)
    options = EngineOptions.of({"max_model_len": workload.length, **setup.engine})
    config = _config(setup, report)
    workload.check(config)
    _check_memory(setup.model, config, dtype, device, options, workload)
    with _engine(setup, config, options, dtype, device, report) as engine:
        warm_up(engine, workload, config.vocab_size)
        single = measure_single(engine, workload, config.vocab_size)
        many = measure_many(engine, workload, config.vocab_size)
    peak_rss = _peak_rss()  # before the buffer below is taken
    kv_dtype, name = resolve_kv_dtype(options.kv_cache_dtype, dtype), str(dtype).removeprefix("torch.")
    per_step = weights_read(config, name) + kv_read(
        config, kv_dtype, workload.prompt_tokens, workload.new_tokens
    )
    return Result(
        setup=setup,
        workload=workload,
        single=single,
        many=many,
        dtype=name,
        kv_cache_dtype=kv_dtype,
        device=_device_name(device),
        threads=torch.get_num_threads(),
        peak_rss=peak_rss,
        peak_device=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        bandwidth=per_step * single.decode_tok_s / single.tokens_per_step,
        peak_bandwidth=read_bandwidth(device),
    )


def _set_threads(threads: int) -> None:
    if threads < 1:
        raise RequestError(f"threads is {threads}; it must be at least 1")
    torch.set_num_threads(threads)


def _config(setup: Setup, report: Report) -> LlamaConfig:
    """The model's shape; of random weights nothing is read."""
    if not setup.random_weights:
        return open_model(setup.model, report).config
    preset = find_preset(setup.model)
    if preset is None:
        raise RequestError(
            f"{setup.model!r} is no known model; random weights are made for {', '.join(sorted(PRESETS))}"
        )
    return preset.config


def _check_memory(
    model: str,
    config: LlamaConfig,
    dtype: torch.dtype,
    device: torch.device,
    options: EngineOptions,
    workload: Workload,
) -> None:
    """Refuses a model of which this device cannot hold even one sequence, before anything is loaded."""
    work = Inference(
        context=workload.length,
        dtype=str(dtype).removeprefix("torch."),
        kv_dtype=resolve_kv_dtype(options.kv_cache_dtype, dtype),
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
) -> Iterator[Engine]:
    if not setup.random_weights:
        given = {"max_model_len": options.max_model_len, **setup.engine}
        with LLM(setup.model, dtype=setup.dtype, device=setup.device, report=report, **given) as llm:
            yield llm.engine
        return
    speculative = options.speculative_config
    if speculative is not None and speculative.model is not None:
        raise RequestError("random weights agree with no smaller model; leave one of the two out")
    with memory_in_words(device):
        engine = build_engine(random_llama(config, dtype, device), None, options, None, report.notice)
    try:
        yield engine
    finally:
        engine.close()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _peak_rss() -> int:
    """Bytes; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
