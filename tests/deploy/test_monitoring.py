"""Prometheus' configuration and rules and Grafana's dashboard, by their own tools, on what a server says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from corral.server.settings import ServerSettings
from tests.deploy.conftest import Deployed
from tests.deploy.promql import (
    DASHBOARD,
    RULES,
    alerts,
    dashboard,
    growing,
    labels_of,
    panel_queries,
    rule_queries,
    rules,
    variable_queries,
    write_test,
)
from tests.deploy.tools import DEPLOY, ROOT, compose, read_yaml, tool

_SERVER = 'job="corral", instance="corral:8000"'
_MODEL = f'{_SERVER}, model_name="m"'
_ANSWERS = f'corral_http_requests_total{{{_SERVER}, route="/v1/completions", method="POST"'
# What must be seen for twenty minutes, so that an alert fires at their end; a step is 15 seconds.
TROUBLE = {
    "CorralDown": {f"up{{{_SERVER}}}": "0x240"},
    "CorralNotReady": {f"corral_ready{{{_SERVER}}}": "0x240"},
    "CorralErrors": {
        f'{_ANSWERS}, status="200"}}': "0+15x240",
        f'{_ANSWERS}, status="500"}}': "0+1x240",
        f'corral_http_requests_total{{{_SERVER}, route="/health", method="GET", status="200"}}': "0+900x240",
    },
    "CorralOutputsFail": {
        f'corral_requests_total{{{_MODEL}, finish_reason="stop"}}': "0+15x240",
        f'corral_requests_total{{{_MODEL}, finish_reason="error"}}': "0+1x240",
    },
    "CorralQueueFull": {f'corral_requests_rejected_total{{{_SERVER}, reason="queue"}}': "0+1x240"},
    "CorralSlowFirstToken": {
        f'corral_time_to_first_token_seconds_bucket{{{_MODEL}, le="10.0"}}': "0+1x240",
        f'corral_time_to_first_token_seconds_bucket{{{_MODEL}, le="20.0"}}': "0+9x240",
        f'corral_time_to_first_token_seconds_bucket{{{_MODEL}, le="+Inf"}}': "0+9x240",
    },
    "CorralPreempts": {f"corral_preemptions_total{{{_MODEL}}}": "0+2x240"},
}
_LATER = 50  # minutes


def _parse() -> Any:
    return pytest.importorskip("promql_parser", reason="the package promql-parser is not there")


def test_promtool_finds_nothing_in_the_configuration() -> None:
    said = tool(
        "promtool", "check", "config", "--lint=all", "--lint-fatal", DEPLOY / "prometheus" / "prometheus.yml"
    )
    assert f"{len(rules())} rules found" in said


def test_prometheus_asks_the_server_of_compose_yaml(tmp_path: Path) -> None:
    (job,) = read_yaml((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    assert target == f"corral:{ServerSettings.port}"
    assert job["metrics_path"] == "/metrics"
    for name in ("corral", "corral-gpu"):
        service = compose(tmp_path, "gpu")["services"][name]
        assert "corral" in service["networks"]["default"]["aliases"]
        assert service["ports"][0]["target"] == ServerSettings.port


@pytest.mark.parametrize("name", [*panel_queries(), *rule_queries()])
def test_a_query_asks_for_what_a_server_shows(name: str, deployed: Deployed) -> None:
    parser = _parse()
    shown = labels_of(deployed.metrics)
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    selectors: list[Any] = []
    grouped: set[str] = set()

    def look(node: Any) -> None:
        if isinstance(node, parser.VectorSelector):
            selectors.append(node)
        elif isinstance(node, parser.AggregateExpr) and node.modifier is not None:
            grouped.update(node.modifier.labels)

    parser.walk(parser.parse({**panel_queries(), **rule_queries()}[name]), look)
    assert selectors
    known = {label for selector in selectors for label in shown.get(selector.name, ())}
    for selector in selectors:
        if selector.name not in recorded:
            assert selector.name in shown
            assert {matcher.name for matcher in selector.matchers.matchers} <= shown[selector.name]
    assert grouped <= known


def test_every_metric_of_a_server_is_on_the_dashboard(deployed: Deployed) -> None:
    asked = " ".join([*panel_queries().values(), *(metric for metric, _ in variable_queries())])
    series = {name for name in labels_of(deployed.metrics) if name.startswith("corral_")}
    families = {name.removesuffix("_bucket") for name in series if not name.endswith(("_sum", "_count"))}
    # Said by others: HTTP's time beside the model's own, the cache in blocks and tokens, and what is served.
    left = {"corral_http_request_seconds", "corral_model_info"}
    left |= {f"corral_kv_cache_{name}" for name in ("blocks", "blocks_used", "tokens")}
    assert {name for name in families if name not in asked} == left


def test_the_dashboard_s_variables_have_values(deployed: Deployed) -> None:
    shown = labels_of(deployed.metrics)
    assert len(variable_queries()) == 2
    for metric, label in variable_queries():
        assert label in shown[metric]


def test_every_panel_shows_something_while_a_server_works(deployed: Deployed, tmp_path: Path) -> None:
    holds = [f"count(({query}) >= 0) > bool 0" for query in panel_queries().values()]
    write_test(tmp_path / "test.yml", growing(deployed.metrics), holds)
    assert "SUCCESS" in tool("promtool", "test", "rules", tmp_path / "test.yml")


def test_every_recording_gives_something_while_a_server_works(deployed: Deployed, tmp_path: Path) -> None:
    holds = [f"count({rule['record']} >= 0) > bool 0" for rule in rules() if "record" in rule]
    write_test(tmp_path / "test.yml", growing(deployed.metrics), holds)
    assert "SUCCESS" in tool("promtool", "test", "rules", tmp_path / "test.yml")


@pytest.mark.parametrize("alert", alerts())
def test_an_alert_fires_in_the_trouble_that_it_names_and_no_other_does(alert: str, tmp_path: Path) -> None:
    series = [{"series": name, "values": values} for name, values in TROUBLE[alert].items()]
    holds = [
        f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})',
        f'absent(ALERTS{{alertname!="{alert}"}})',
    ]
    write_test(tmp_path / "test.yml", series, holds, _LATER)
    assert "SUCCESS" in tool("promtool", "test", "rules", tmp_path / "test.yml")


def test_no_alert_fires_while_all_is_well(tmp_path: Path) -> None:
    well = {
        f"up{{{_SERVER}}}": "1x240",
        f"corral_ready{{{_SERVER}}}": "0x20 1x220",  # it took five minutes to load
        f'corral_http_requests_total{{{_SERVER}, route="none", method="GET", status="503"}}': "0+1x240",
        f'{_ANSWERS}, status="200"}}': "0+5x240",
        f'corral_requests_total{{{_MODEL}, finish_reason="stop"}}': "0+5x240",
        f'corral_requests_total{{{_MODEL}, finish_reason="cancelled"}}': "0+5x240",
        f'corral_requests_rejected_total{{{_SERVER}, reason="no_key"}}': "0+9x240",
        f'corral_time_to_first_token_seconds_bucket{{{_MODEL}, le="1.0"}}': "0+5x240",
        f'corral_time_to_first_token_seconds_bucket{{{_MODEL}, le="+Inf"}}': "0+5x240",
        f"corral_preemptions_total{{{_MODEL}}}": "0x239 9",
    }
    series = [{"series": name, "values": values} for name, values in well.items()]
    holds = ['absent(ALERTS{alertstate=~"firing"})', "count(corral:requests:rate5m) / 2"]
    write_test(tmp_path / "test.yml", series, holds, _LATER)
    assert "SUCCESS" in tool("promtool", "test", "rules", tmp_path / "test.yml")


def test_grafana_s_own_types_take_the_whole_dashboard() -> None:
    """What Grafana's types do not know is lost on the way through them, and what has another shape fails."""
    models = pytest.importorskip(
        "grafana_foundation_sdk.models.dashboard", reason="the package grafana-foundation-sdk is not there"
    )
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins

    register_default_plugins()
    read = models.Dashboard.from_json(dashboard())
    assert _lost(dashboard(), json.loads(json.dumps(read, cls=JSONEncoder))) == []


def _lost(ours: Any, theirs: Any, place: str = "") -> list[str]:
    """Where the second lacks what the first has, or has something else."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        lost = [f"{place}/{key}" for key in ours if key not in theirs]
        for key in ours.keys() & theirs.keys():
            lost += _lost(ours[key], theirs[key], f"{place}/{key}")
        return lost
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [lost for at, pair in pairs for lost in _lost(*pair, f"{place}/{at}")]
    return [] if ours == theirs else [place]


def test_panels_fill_the_dashboard_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    height = max(y for _, y in taken) + 1
    assert taken == {(x, y) for x in range(24) for y in range(height)}


def test_grafana_finds_its_source_and_its_dashboard(tmp_path: Path) -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = read_yaml((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = read_yaml((provisioning / "dashboards" / "corral.yaml").read_text())["providers"]
    services = compose(tmp_path, "monitoring")["services"]
    assert source["url"] == f"http://prometheus:{services['prometheus']['ports'][0]['target']}"
    chosen = next(v for v in dashboard()["templating"]["list"] if v["type"] == "datasource")
    assert chosen["current"]["value"] == source["uid"]
    places = {volume["target"]: volume["source"] for volume in services["grafana"]["volumes"]}
    assert places[provider["options"]["path"]] == str(DASHBOARD.parent)
    home = Path(services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home == Path(provider["options"]["path"]) / DASHBOARD.name
    rules_file = read_yaml((DEPLOY / "prometheus" / "prometheus.yml").read_text())["rule_files"]
    assert rules_file == [RULES.name]
    assert Path(services["prometheus"]["volumes"][0]["source"]) == ROOT / "deploy" / "prometheus"
