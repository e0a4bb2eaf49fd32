"""What Prometheus reads. Names are Corral's own; what is counted, and why, follows vLLM's notes on metrics:

intervals come from one process's monotonic clock; hits and queries of the prefix cache are counters, so that
any rate can be made of them; and labels have few values, all known to the server.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from corral.engine.events import Finished, FinishReason
from corral.server.ops.histogram import TokenHistogram

FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
SLOW = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 240.0, 480.0)
TOKENS = tuple(float(2**power) for power in range(18))

_REASONS: tuple[FinishReason, ...] = ("stop", "length", "cancelled", "error")


class Metrics:
    """The metrics of one server, in a registry of its own.

    Args:
        model_name: that of the model; adapters come under theirs as they are used.
    """

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.model_name = model_name
        self._models: dict[str, ModelMetrics] = {}
        self._make_http()
        self._make_model()
        self.of(model_name)

    def of(self, model: str) -> ModelMetrics:
        """The metrics of what runs for a model or an adapter."""
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = ModelMetrics(self, model)
        return found

    @property
    def models(self) -> list[ModelMetrics]:
        """Those of all models that were asked for."""
        return list(self._models.values())

    def answer(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics as text, and its content type: OpenMetrics for whoever accepts it."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _make_http(self) -> None:
        self.http_requests = self._counter(
            "corral_http_requests", "Requests by route, method and status.", "route", "method", "status"
        )
        self.http_seconds = self._histogram(
            "corral_http_request_seconds", "From a request's head to the end of its answer.", SLOW, "route"
        )
        self.in_flight = Gauge(
            "corral_http_requests_in_flight", "Requests that are being answered.", registry=self.registry
        )
        self.refused = self._counter(
            "corral_requests_rejected", "Requests that were turned away, by the reason.", "reason"
        )
        self.left = self._counter("corral_clients_left", "Requests whose client went before their end.")

    def _make_model(self) -> None:
        names = ("model_name",)
        self.finished = self._counter(
            "corral_requests", "Outputs that ended, by the reason.", *names, "finish_reason"
        )
        spans = {
            "queue": "Waiting for the first step.",
            "prefill": "From the first step to the first token.",
            "decode": "From the first token to the last.",
        }
        self.spans = {
            name: self._histogram(f"corral_request_{name}_seconds", text, SLOW, *names)
            for name, text in spans.items()
        }
        self.whole = self._histogram(
            "corral_request_seconds", "From arrival to the last token.", SLOW, *names
        )
        self.first_token = self._histogram(
            "corral_time_to_first_token_seconds", "From a request's arrival to its first token.", SLOW, *names
        )
        self.prompt_tokens = self._histogram(
            "corral_request_prompt_tokens", "Tokens of a prompt.", TOKENS, *names
        )
        self.generation_tokens = self._histogram(
            "corral_request_generation_tokens", "Tokens of an output.", TOKENS, *names
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=bounds, registry=self.registry)


class ModelMetrics:
    """The metrics of one model, with their labels looked up beforehand."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.model = model
        self.between_tokens = TokenHistogram(FAST)
        self._finished = {reason: metrics.finished.labels(model, reason) for reason in _REASONS}
        self._spans = {name: histogram.labels(model) for name, histogram in metrics.spans.items()}
        self._whole = metrics.whole.labels(model)
        self.first_token = metrics.first_token.labels(model)
        self.prompt_tokens = metrics.prompt_tokens.labels(model)
        self._generation_tokens = metrics.generation_tokens.labels(model)

    def finish(self, event: Finished, seconds: float) -> None:
        """Counts an output that has ended, `seconds` after its request arrived."""
        self._finished[event.reason].inc()
        self._spans["queue"].observe(event.timings.queued)
        self._spans["prefill"].observe(event.timings.prefill)
        self._spans["decode"].observe(event.timings.decode)
        self._whole.observe(seconds)
        self._generation_tokens.observe(event.usage.completion_tokens)

    def fail(self) -> None:
        """Counts a request that failed before it gave any output."""
        self._finished["error"].inc()

    def cancel(self, num_outputs: int) -> None:
        """Counts outputs that nobody waits for any more."""
        self._finished["cancelled"].inc(num_outputs)
