"""What Prometheus reads: of a real engine, and of single events."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from corral.engine.events import Failed, Finished, Started, Timings, Tokens, Usage
from corral.engine.request import Request
from corral.engine.sampling.params import SamplingParams
from corral.errors import EngineError
from corral.llm import LLM
from corral.server.ops.histogram import TokenHistogram
from corral.server.ops.operations import Operations
from corral.server.ops.record import Exchange, put_exchange
from corral.server.settings import ServerSettings
from tests.checkpoints.writers import write_chat_model
from tests.server.ops.inner import Idle


def _samples(operations: Operations) -> dict[tuple[str, str], float]:
    """The values of metrics by name and the labels that are not the model's."""
    text, content_type = operations.metrics.answer()
    assert content_type.startswith("text/plain")
    return {
        (
            sample.name,
            ",".join(f"{k}={v}" for k, v in sample.labels.items() if k != "model_name"),
        ): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder = tmp_path_factory.mktemp("models") / "model"
    write_chat_model(folder)
    return LLM(folder, threads=1, kernels="torch", max_num_seqs=4, block_size=4)


def test_the_engine_s_sums_are_counters(llm: LLM) -> None:
    operations, service = Operations(ServerSettings(model="tiny")), Idle()
    operations.watch(service)
    assert _samples(operations)["corral_ready", ""] == 0.0
    service.loaded = llm
    before = _samples(operations)
    request = Request(tuple(range(3, 19)), SamplingParams(max_tokens=5, seed=1, ignore_eos=True, n=2))
    for _ in range(2):
        observer = operations.begin({}, request, "tiny")
        for event in llm.engine.submit(request):
            observer.event(event)
    after = _samples(operations)
    grown = {name: value - before.get(name, 0.0) for name, value in after.items()}
    assert grown["corral_prompt_tokens_total", ""] == 32
    assert grown["corral_generation_tokens_total", ""] == 20
    assert grown["corral_prefix_cache_queries_total", ""] == 32
    assert grown["corral_prefix_cache_hits_total", ""] == 12  # three whole blocks, of the second prompt
    assert grown["corral_requests_total", "finish_reason=length"] == 4
    assert grown["corral_time_to_first_token_seconds_count", ""] == 2
    assert grown["corral_inter_token_seconds_count", ""] == 16
    assert grown["corral_request_prompt_tokens_sum", ""] == 32
    assert grown["corral_request_generation_tokens_sum", ""] == 20
    for span in ("queue", "prefill", "decode"):
        assert grown[f"corral_request_{span}_seconds_count", ""] == 4
    assert after["corral_requests_running", ""] == after["corral_requests_waiting", ""] == 0
    assert after["corral_kv_cache_usage_ratio", ""] == 0
    assert after["corral_kv_cache_tokens", ""] == llm.engine.stats().capacity > 0
    assert after["corral_ready", ""] == 1


def test_two_servers_share_no_metrics() -> None:
    one, other = Operations(ServerSettings()), Operations(ServerSettings())
    one.metrics.left.inc()
    assert _samples(one)["corral_clients_left_total", ""] == 1
    assert _samples(other)["corral_clients_left_total", ""] == 0


def test_several_tokens_at_once_share_their_time() -> None:
    operations = Operations(ServerSettings(model="tiny"))
    operations.watch(Idle())
    observer = operations.begin({}, Request((1,)), "tiny")
    for event in (Started(1, 0), Tokens(0, (1,), "a"), Tokens(0, (2, 3, 4), "bcd"), Tokens(0, (), "")):
        observer.event(event)
    observer.event(Finished(0, "stop", Usage(1, 0, 4), Timings(0.1, 0.2, 0.3)))
    samples = _samples(operations)
    assert samples["corral_inter_token_seconds_count", ""] == 3
    assert samples["corral_request_decode_seconds_sum", ""] == pytest.approx(0.3)


def test_a_request_that_fails_is_counted() -> None:
    operations = Operations(ServerSettings(model="tiny"))
    operations.watch(Idle())
    operations.begin({}, Request((1,)), "tiny").event(Failed(EngineError("broken")))
    assert _samples(operations)["corral_requests_total", "finish_reason=error"] == 1


def test_a_client_that_leaves_is_counted_with_what_it_has_got() -> None:
    operations = Operations(ServerSettings(model="tiny"))
    operations.watch(Idle())
    scope: dict[str, object] = {}
    exchange = Exchange("r1", "POST", "/v1/completions")
    put_exchange(scope, exchange)
    observer = operations.begin(scope, Request((1, 2), SamplingParams(n=2)), "tiny")
    for event in (Started(2, 0), Tokens(0, (1, 2), "ab"), Tokens(1, (3,), "c")):
        observer.event(event)
    observer.event(Finished(0, "stop", Usage(2, 0, 2), Timings(0.1, 0.2, 0.3)))
    observer.left()
    operations.begin_exchange(exchange, {"headers": []}, quiet=False)
    operations.end_exchange(exchange, "/v1/completions", quiet=False)
    samples = _samples(operations)
    assert samples["corral_requests_total", "finish_reason=stop"] == 1
    assert samples["corral_requests_total", "finish_reason=cancelled"] == 1
    assert samples["corral_clients_left_total", ""] == 1
    assert exchange.completion_tokens == 3
    assert exchange.finish_reasons == ["stop", "cancelled"]


def test_openmetrics_is_given_to_whoever_accepts_it() -> None:
    text, content_type = Operations(ServerSettings()).metrics.answer(
        "application/openmetrics-text; version=1.0.0"
    )
    assert content_type.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")


def test_a_token_histogram_counts_as_prometheus_does() -> None:
    from prometheus_client import CollectorRegistry, Histogram
    from prometheus_client.core import HistogramMetricFamily

    bounds, values = (0.1, 0.5, 1.0), (0.05, 0.1, 0.3, 0.5, 0.7, 3.0)
    theirs, ours = Histogram("h", "", buckets=bounds, registry=CollectorRegistry()), TokenHistogram(bounds)
    for value in values:
        theirs.observe(value)
        ours.observe(value)
    family = HistogramMetricFamily("h", "", labels=())
    ours.add_to(family, ())
    theirs_told = {(s.name, s.labels.get("le")): s.value for s in next(iter(theirs.collect())).samples}
    told = {(sample.name, sample.labels.get("le")): sample.value for sample in family.samples}
    assert told == {key: value for key, value in theirs_told.items() if not key[0].endswith("_created")}
