"""The engine's own sums, looked up when Prometheus asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

import corral
from corral.engine.stats import EngineStats
from corral.llm import LLM
from corral.server.ops.metrics import Metrics

_LABELS = ("model_name",)


class EngineCollector(Collector):
    """Adds to a server's metrics what its engine counts.

    Args:
        metrics: where to.
        loaded: gives the model, or None while there is none.
    """

    def __init__(self, metrics: Metrics, loaded: Callable[[], LLM | None]) -> None:
        self._metrics, self._loaded = metrics, loaded
        metrics.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Looks at the engine; without one there are only what the server has measured itself."""
        between = HistogramMetricFamily(
            "corral_inter_token_seconds", "Between two tokens of an output.", labels=_LABELS
        )
        for model in self._metrics.models:
            model.between_tokens.add_to(between, [model.model])
        yield between
        llm, name = self._loaded(), self._metrics.model_name
        yield GaugeMetricFamily("corral_ready", "1 once the model is loaded.", value=float(llm is not None))
        if llm is None:
            return
        yield _info(llm, name)
        stats = llm.engine.stats()
        yield from _sums(stats, name)
        yield from _levels(stats, name)


def _sums(stats: EngineStats, name: str) -> Iterator[Metric]:
    counters = stats.counters
    sums = {
        "corral_prompt_tokens": ("Tokens of the prompts that were begun.", counters.prompt_tokens),
        "corral_generation_tokens": ("Tokens that were generated.", counters.generated_tokens),
        "corral_prefix_cache_queries": (
            "Tokens of prompts that were looked up in the prefix cache.",
            counters.prompt_tokens,
        ),
        "corral_prefix_cache_hits": ("Those of them that were found there.", counters.cached_tokens),
        "corral_prefix_cache_evictions": ("Blocks of prefixes given up for others.", stats.evictions),
        "corral_preemptions": ("How often an output gave its blocks back.", stats.preemptions),
        "corral_speculation_draft_tokens": ("Tokens that were guessed ahead.", counters.draft_tokens),
        "corral_speculation_accepted_tokens": ("Those of them that were right.", counters.accepted_tokens),
        "corral_engine_steps": ("Steps of the engine that had work.", counters.steps),
        "corral_engine_failures": ("Requests that failed in the engine.", counters.failures),
    }
    for metric, (text, value) in sums.items():
        family = CounterMetricFamily(metric, text, labels=_LABELS)
        family.add_metric([name], value)
        yield family


def _levels(stats: EngineStats, name: str) -> Iterator[Metric]:
    share = stats.blocks_used / max(stats.blocks - 1, 1)
    levels = {
        "corral_requests_running": ("Outputs in the engine's steps.", stats.running),
        "corral_requests_waiting": ("Outputs in the engine's queue.", stats.waiting),
        "corral_kv_cache_blocks": ("Blocks of the key-value cache.", stats.blocks - 1),
        "corral_kv_cache_blocks_used": ("Those of them that hold running outputs.", stats.blocks_used),
        "corral_kv_cache_tokens": ("Tokens that all of them hold.", stats.capacity),
        "corral_kv_cache_usage_ratio": ("The share of the blocks that is used, 0 to 1.", share),
    }
    for metric, (text, value) in levels.items():
        family = GaugeMetricFamily(metric, text, labels=_LABELS)
        family.add_metric([name], value)
        yield family


def _info(llm: LLM, name: str) -> Metric:
    told = {
        "model": llm.name,
        "max_model_len": str(llm.max_model_len),
        "max_num_seqs": str(llm.engine.config.max_num_seqs),
        "version": corral.__version__,
    }
    family = InfoMetricFamily("corral_model", "What is served.", labels=_LABELS)
    family.add_metric([name], told)
    return family
