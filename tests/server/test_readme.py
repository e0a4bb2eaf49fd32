"""The README's clients are answered."""

from __future__ import annotations

import re
import sys

import pytest

from tests.server.live_server import LiveServer
from tests.test_readme import ADDRESS, EXAMPLES, README, output_of

CLIENTS = [code for code in EXAMPLES if ADDRESS in code]


@pytest.mark.parametrize(("code", "shown"), [*zip(CLIENTS, ["get_weather", "Paris"], strict=True)])
def test_the_clients_of_the_examples_are_answered(code: str, shown: str, server: LiveServer) -> None:
    assert shown in output_of([sys.executable, "-c", code.replace(ADDRESS, server.base_url)])


def test_the_curl_example_is_answered(server: LiveServer) -> None:
    (command,) = re.findall(r"^(curl .*?)\n```", README, re.DOTALL | re.MULTILINE)
    assert "Paris" in output_of(["bash", "-c", command.replace(ADDRESS, server.base_url)])
