"""What a server says, as Prometheus keeps it, and what queries ask of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.tools import DEPLOY, read_yaml

DASHBOARD = DEPLOY / "grafana" / "dashboards" / "corral.json"
RULES = DEPLOY / "prometheus" / "rules.yml"
# What Grafana puts in before it asks.
_VARIABLES = {"$__rate_interval": "5m", "$instance": ".+", "$model": ".+"}
_TARGET = {"job": "corral", "instance": "corral:8000"}  # the labels of what is scraped


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text("utf-8"))
    return found


def panel_queries() -> dict[str, str]:
    """The queries of the dashboard by their panels, as Prometheus gets them."""
    return {
        f"{panel['title']} / {target['refId']}": _filled(target["expr"])
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    }


def variable_queries() -> list[tuple[str, str]]:
    """The metric and the label that each of the dashboard's variables takes its values from."""
    queries = [v["query"]["query"] for v in dashboard()["templating"]["list"] if v["type"] == "query"]
    found = [re.fullmatch(r"label_values\((\w+), (\w+)\)", query) for query in queries]
    return [(match[1], match[2]) for match in found if match is not None]


def rules() -> list[dict[str, Any]]:
    """The rules, recordings and alerts."""
    return [rule for group in read_yaml(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]


def alerts() -> list[str]:
    return [rule["alert"] for rule in rules() if "alert" in rule]


def rule_queries() -> dict[str, str]:
    return {rule["alert" if "alert" in rule else "record"]: rule["expr"] for rule in rules()}


def _filled(query: str) -> str:
    for name, value in _VARIABLES.items():
        query = query.replace(name, value)
    return query


def labels_of(metrics: str) -> dict[str, set[str]]:
    """The names of all series that a server shows, with the labels that they have once they are scraped."""
    found: dict[str, set[str]] = {"up": set(_TARGET)}
    for family in _families(metrics):
        for sample in family.samples:
            found.setdefault(sample.name, set(_TARGET)).update(sample.labels)
    return found


def growing(metrics: str) -> list[dict[str, str]]:
    """The series of a server for promtool: what was counted once is counted again every 15 seconds."""
    series = [{"series": _series("up", {}), "values": "1x120"}]
    for family in _families(metrics):
        for sample in family.samples:
            if family.type == "histogram":
                step = sample.value
            else:
                step = max(sample.value, 1.0) if family.type == "counter" else 0.0
            values = f"{sample.value}+{step}x120"
            series.append({"series": _series(sample.name, sample.labels), "values": values})
    return series


def write_test(path: Path, series: list[dict[str, str]], holds: list[str], minutes: int = 20) -> None:
    """A test for promtool: each of these queries gives one sample, 1, without labels."""
    expected = [{"labels": "{}", "value": 1}]
    cases = [{"expr": query, "eval_time": f"{minutes}m", "exp_samples": expected} for query in holds]
    test = {"interval": "15s", "input_series": series, "promql_expr_test": cases}
    path.write_text(
        yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "15s", "tests": [test]})
    )


def _families(metrics: str) -> Iterator[Metric]:
    for family in text_string_to_metric_families(metrics):
        family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        yield family


def _series(name: str, labels: dict[str, str]) -> str:
    pairs = ", ".join(f"{key}={json.dumps(value)}" for key, value in {**labels, **_TARGET}.items())
    return f"{name}{{{pairs}}}"
