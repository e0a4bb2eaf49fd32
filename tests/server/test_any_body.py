"""Bodies of every kind, made from the server's own description: none makes it fail."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from corral.llm import LLM
from corral.server.app import build_app
from corral.server.service import Service
from tests.server.live_server import LiveServer

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def operations() -> dict[str, Any]:
    """What the server says that it does, by method and path."""

    def load() -> LLM:
        raise AssertionError("the description needs no model")

    described: Any = schemathesis.openapi.from_dict(build_app(Service(load, ["small"])).openapi())
    found = (result.ok() for result in described.get_all_operations())
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


OPERATIONS = operations()
MODES = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_body_makes_the_server_fail(name: str, small_server: LiveServer) -> None:
    operation = OPERATIONS[name]

    @given(st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in MODES)))
    @settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
    def ask(case: Any) -> None:
        answer = case.call(base_url=small_server.base_url, timeout=60)
        assert answer.status_code != 500, answer.text
        case.validate_response(answer, checks=CHECKS)

    ask()
    small_server.service.llm.engine.check_integrity()
