"""The options of an engine, as callers give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from corral.engine.cache.storage import KV_DTYPES
from corral.engine.config import SchedulerConfig
from corral.engine.sampling.checks import require_flag, require_number, require_whole
from corral.errors import RequestError
from corral.model.config import LlamaConfig
from corral.quant.on_load import SCHEMES

BATCHED_TOKENS = {"cpu": 512, "cuda": 4096}
KERNELS = ("auto", "native", "torch")
METHODS = {"prompt_lookup": "prompt_lookup", "ngram": "prompt_lookup", "draft_model": "draft_model"}


@dataclass(frozen=True)
class SpeculativeConfig:
    """How tokens are guessed ahead. The output stays the same; only the speed changes.

    Attributes:
        method: "prompt_lookup" (also "ngram") guesses what followed the same text before; "draft_model" asks
            a smaller model. None is "draft_model" where a `model` is given.
        model: the smaller model: a short name, a Hub name, a folder or a .gguf file.
        num_speculative_tokens: the most tokens to guess at once.
        max_batch: nothing is guessed while more sequences decode.
    """

    method: str | None = None
    model: str | None = None
    num_speculative_tokens: int = 8
    max_batch: int = 4

    def __post_init__(self) -> None:
        method = self.method or ("draft_model" if self.model else "prompt_lookup")
        if method not in METHODS:
            raise RequestError(f"speculative_config.method is {method!r}; it must be {' or '.join(METHODS)}")
        object.__setattr__(self, "method", METHODS[method])
        if self.model is not None and not isinstance(self.model, str):
            raise RequestError(f"speculative_config.model is {self.model!r}; it must be the name of a model")
        if (self.method == "draft_model") != (self.model is not None):
            raise RequestError("speculative_config.model goes with the method draft_model, and only with it")
        require_whole(
            "speculative_config.num_speculative_tokens", self.num_speculative_tokens, low=1, high=64
        )
        require_whole("speculative_config.max_batch", self.max_batch, low=1)

    @classmethod
    def of(cls, given: Mapping[str, Any] | SpeculativeConfig | None) -> SpeculativeConfig | None:
        """Reads the option as it was given."""
        if given is None or isinstance(given, SpeculativeConfig):
            return given
        if not isinstance(given, Mapping):
            raise RequestError(f"speculative_config is {given!r}; it must be a dictionary")
        _refuse_unknown("speculative_config.", given, cls)
        return cls(**given)


@dataclass(frozen=True)
class EngineOptions:
    """What can be set about an engine; what is None is chosen for the model and the device.

    Attributes:
        max_model_len: the longest context, prompt and output together; None takes the model's, or as much of
            it as there is memory for.
        max_num_seqs, max_num_batched_tokens, max_prefill_chunk, max_waiting_requests, max_waiting_tokens:
            see `SchedulerConfig`.
        block_size: tokens of a block of the key-value cache.
        kv_cache_dtype: "auto" (the model's), "float32", "bfloat16", "float16" or "int8".
        kv_cache_memory: bytes for the cache; None takes a share of the memory that is free.
        gpu_memory_utilization: that share on a GPU, of all its memory, weights included.
        enable_prefix_caching: keep the keys and values of prompts for those that begin alike.
        speculative_config: see `SpeculativeConfig`.
        kernels: what computes on a CPU: "native", Corral's own kernels; "torch"; or "auto", native ones where
            they are built.
        threads: of the native kernels; None is one for each physical core that the process may use. Where
            torch computes, they are torch's, in the whole process; None leaves them as they are.
        exact_activations: multiply quantized weights with bfloat16 activations instead of 8-bit ones: slower,
            and nearer to the weights' own accuracy. Where torch computes, 8-bit ones meet nothing but 8-bit
            floats whose checkpoint asks for it, on a GPU that multiplies them.
        quantize: make the weights of a full-precision checkpoint smaller while they are read: "int8", "int4",
            "nf4" or "fp8"; see `corral.quant.on_load`.
    """

    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    max_prefill_chunk: int | None = None
    max_waiting_requests: int = SchedulerConfig.max_waiting_requests
    max_waiting_tokens: int = SchedulerConfig.max_waiting_tokens
    block_size: int = 32
    kv_cache_dtype: str = "auto"
    kv_cache_memory: int | None = None
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    speculative_config: SpeculativeConfig | None = None
    kernels: str = "auto"
    threads: int | None = None
    exact_activations: bool = False
    quantize: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "speculative_config", SpeculativeConfig.of(self.speculative_config))
        if self.kernels not in KERNELS:
            raise RequestError(f"kernels is {self.kernels!r}; it must be one of {', '.join(KERNELS)}")
        if self.quantize is not None and self.quantize not in tuple(SCHEMES):
            raise RequestError(f"quantize is {self.quantize!r}; it must be one of {', '.join(SCHEMES)}")
        if self.threads is not None:
            require_whole("threads", self.threads, low=1, high=1024)
        require_flag("exact_activations", self.exact_activations)
        require_whole("block_size", self.block_size, low=1, high=1024)
        require_number(
            "gpu_memory_utilization", self.gpu_memory_utilization, low=0.0, high=1.0, low_open=True
        )
        require_flag("enable_prefix_caching", self.enable_prefix_caching)
        if self.kv_cache_dtype not in KV_DTYPES:
            names = ", ".join(KV_DTYPES)
            raise RequestError(f"kv_cache_dtype is {self.kv_cache_dtype!r}; it must be one of {names}")
        for name in ("max_model_len", "kv_cache_memory"):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), low=1)
        self.scheduler("cuda")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> EngineOptions:
        """Reads options by their names.

        Raises:
            RequestError: there is no such option, or a value is out of range.
        """
        _refuse_unknown("", given, cls)
        return cls(**given)

    def check(self, config: LlamaConfig) -> None:
        """Raises RequestError where the model has no such context."""
        longest = config.max_position_embeddings
        stretches = config.rope_scaling is not None and config.rope_scaling.kind == "dynamic"
        if self.max_model_len is not None and self.max_model_len > longest and not stretches:
            raise RequestError(f"max_model_len is {self.max_model_len}, but the model's context is {longest}")

    def scheduler(self, device_type: str) -> SchedulerConfig:
        """The bounds of a step and of the queue on such a device."""
        budget = self.max_num_batched_tokens
        if budget is None:
            budget = max(BATCHED_TOKENS.get(device_type, 512), 2 * self.max_num_seqs)
        return SchedulerConfig(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=budget,
            max_prefill_chunk=self.max_prefill_chunk,
            max_waiting_requests=self.max_waiting_requests,
            max_waiting_tokens=self.max_waiting_tokens,
        )


def _refuse_unknown(prefix: str, given: Mapping[str, Any], kind: type) -> None:
    names = [f.name for f in fields(kind)]
    unknown = next((name for name in given if name not in names), None)
    if unknown is not None:
        raise RequestError(f"{prefix}{unknown} is no option; there are {', '.join(names)}")
