"""Bodies of every kind, made from the server's own description: none makes it fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.live_server import LiveServer

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def described(small_server: LiveServer) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{small_server.base_url}/openapi.json")


schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()
@settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None)
def test_no_body_makes_the_server_fail(case: Any) -> None:
    case.call_and_validate(checks=CHECKS, timeout=60)


@pytest.fixture(autouse=True)
def nothing_is_left(small_server: LiveServer) -> Iterator[None]:
    yield
    assert httpx.get(f"{small_server.base_url}/health").status_code == 200
    small_server.service.llm.engine.check_integrity()
