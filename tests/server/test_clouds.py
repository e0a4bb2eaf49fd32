"""The routes that clouds ask a container by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from corral.errors import ConfigError
from corral.llm import LLM
from corral.server.app import build_app
from corral.server.clouds import Vertex
from corral.server.service import Service
from tests.checkpoints.writers import write_chat_model
from tests.engine.engines import wait_until
from tests.random_models import SMALL_CHAT
from tests.server.live_server import LiveServer, live_server

HTTP = httpx.Client(timeout=60)
HI = [{"role": "user", "content": "Hi"}]
SHORT = {"max_tokens": 3, "ignore_eos": True, "temperature": 0}
INPUTS = {"inputs": "Hi", "parameters": {"max_new_tokens": 3}}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("small")
    write_chat_model(folder)
    environ = {"AIP_HEALTH_ROUTE": "/alive", "AIP_PREDICT_ROUTE": "/v1/foretell"}
    with live_server(LLM(str(folder), threads=1), "small", vertex=Vertex.from_environ(environ)) as server:
        yield server


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server whose longest answers take a minute."""
    folder = tmp_path_factory.mktemp("lasting")
    write_chat_model(folder, config=replace(SMALL_CHAT, max_position_embeddings=2**16))
    vertex = Vertex.from_environ({"AIP_PREDICT_ROUTE": "/generate"})
    with live_server(LLM(str(folder), threads=1), "small", vertex=vertex) as server:
        yield server


def ask(server: LiveServer, path: str, body: Any, **headers: str) -> Any:
    answer = HTTP.post(server.base_url + path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_pings_say_whether_the_model_is_ready(cloud: LiveServer) -> None:
    for path in ("/ping", "/alive"):
        assert HTTP.get(cloud.base_url + path).json() == {"status": "ready"}


def test_pings_say_that_the_model_is_being_loaded() -> None:
    loading = Service(lambda: LLM("never"), ["never"])
    client = TestClient(build_app(loading, Vertex("/alive", None)))
    for path in ("/ping", "/alive"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()) == (503, {"status": "loading"})


@pytest.mark.parametrize("path", ["/invocations", "/v1/foretell"])
def test_a_body_is_handed_on_to_the_route_that_it_is_for(cloud: LiveServer, path: str) -> None:
    chat = ask(cloud, path, {"messages": HI, **SHORT})
    straight = ask(cloud, "/v1/chat/completions", {"messages": HI, **SHORT})
    assert chat["choices"] == straight["choices"]
    assert ask(cloud, path, {"prompt": "Hi", **SHORT})["object"] == "text_completion"
    assert ask(cloud, path, INPUTS) == ask(cloud, "/", INPUTS)


def test_a_stream_is_handed_on_as_it_is(cloud: LiveServer) -> None:
    body = {"messages": HI, "stream": True, **SHORT}
    with HTTP.stream("POST", f"{cloud.base_url}/invocations", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert len(lines) > 3


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "the body must have messages, a prompt, or inputs; it has none of them"),
        (
            {"prompt": "a", "inputs": "b"},
            "the body must have messages, a prompt, or inputs; it has prompt and inputs",
        ),
        ([1], "the body must be a JSON object"),
        ({"messages": HI, "surprise": 1}, "surprise is no field that this server knows; remove it"),
    ],
)
def test_bodies_for_no_route_are_refused(cloud: LiveServer, body: Any, sentence: str) -> None:
    answer = HTTP.post(f"{cloud.base_url}/invocations", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == sentence


@pytest.mark.parametrize("body", ["{", '{"inputs": NaN}', "[" * 100_000, ""])
def test_what_is_no_json_is_refused(cloud: LiveServer, body: str) -> None:
    answer = HTTP.post(f"{cloud.base_url}/invocations", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("the body is ")


def test_errors_have_the_shape_of_the_route_for_the_body(cloud: LiveServer) -> None:
    answer = HTTP.post(f"{cloud.base_url}/invocations", json={"inputs": "a", "parameters": {"top_k": 0}})
    assert answer.status_code == 422
    assert answer.json()["error_type"] == "validation"


def test_sagemakers_header_names_the_adapter(cloud: LiveServer) -> None:
    header = {"x-amzn-sagemaker-adapter-identifier": "style"}
    bodies: list[Any] = [{"messages": HI, **SHORT}, INPUTS]
    for body in bodies:
        answer = HTTP.post(f"{cloud.base_url}/invocations", json=body, headers=header)
        assert answer.status_code == 404
        assert "model 'style' is not served here" in answer.text
    body = {"messages": HI, "model": "other"}
    answer = HTTP.post(f"{cloud.base_url}/invocations", json=body, headers=header)
    assert "the body names another adapter" in answer.json()["error"]["message"]
    header = {"x-amzn-sagemaker-adapter-identifier": "small"}
    assert ask(cloud, "/invocations", {"messages": HI, **SHORT}, **header)["model"] == "small"


def test_instances_become_predictions(cloud: LiveServer) -> None:
    instances = [{"inputs": "Hi"}, {"inputs": "Ho", "parameters": {"max_new_tokens": 1}}]
    found = ask(cloud, "/v1/foretell", {"instances": instances, "parameters": {"max_new_tokens": 2}})
    alone = [
        {"inputs": "Hi", "parameters": {"max_new_tokens": 2}},
        {"inputs": "Ho", "parameters": {"max_new_tokens": 1}},
    ]
    assert found["predictions"] == [ask(cloud, "/", body)[0]["generated_text"] for body in alone]
    (chat,) = ask(cloud, "/v1/foretell", {"instances": [{"messages": HI}], "parameters": SHORT})[
        "predictions"
    ]
    assert chat["object"] == "chat.completion"
    assert chat["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"instances": []}, "instances: it must be a list of 1 to 64 objects"),
        ({"instances": [{"inputs": "a"}] * 65}, "instances: it must be a list of 1 to 64 objects"),
        ({"instances": [5]}, "instances[0]: it must be an object"),
        (
            {"instances": [{"x": 1}]},
            "instances[0] must have messages, a prompt, or inputs; it has none of them",
        ),
        ({"instances": [{"inputs": "a"}], "x": 1}, "x does not go with instances; remove it"),
        ({"instances": [{"inputs": "a"}], "parameters": [1]}, "parameters: it must be an object"),
        (
            {"instances": [{"prompt": "a", "stream": True}]},
            "instances[0].stream: predictions come in one piece; send one raw body to stream",
        ),
    ],
)
def test_instances_that_cannot_be_asked_are_refused(cloud: LiveServer, body: Any, sentence: str) -> None:
    answer = HTTP.post(f"{cloud.base_url}/v1/foretell", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == sentence


def test_one_bad_instance_is_the_answer(cloud: LiveServer) -> None:
    body = {"instances": [{"inputs": "Hi"}, {"inputs": "Hi", "parameters": {"top_k": -1}}]}
    answer = HTTP.post(f"{cloud.base_url}/v1/foretell", json=body)
    assert answer.status_code == 422
    assert answer.json() == {
        "error": "parameters.top_k: input should be greater than 0",
        "error_type": "validation",
    }


def test_who_leaves_before_the_predictions_stops_all_of_them(lasting: LiveServer) -> None:
    endless = {"prompt": "Hi", "max_tokens": 60_000, "ignore_eos": True}
    for path, body in (("/invocations", endless), ("/generate", {"instances": [endless] * 3})):
        with pytest.raises(httpx.ReadTimeout):
            HTTP.post(lasting.base_url + path, json=body, timeout=httpx.Timeout(5, read=1))
        wait_until(lambda: not lasting.service.num_running)
    engine = lasting.service.llm.engine
    wait_until(lambda: not engine.stats().running)
    assert engine.stats().counters.finished["cancelled"] == 4


def test_a_route_that_is_there_keeps_its_bodies(lasting: LiveServer) -> None:
    """/generate is the route for predictions here too."""
    assert list(ask(lasting, "/generate", INPUTS)) == ["generated_text"]
    assert ask(lasting, "/generate", {"instances": [INPUTS]})["predictions"]


def test_without_its_variables_there_is_nothing_of_vertex_ai(small_server: LiveServer) -> None:
    assert Vertex.from_environ({}) == Vertex(None, None)
    assert HTTP.post(f"{small_server.base_url}/v1/foretell", json={}).status_code == 404
    assert HTTP.get(f"{small_server.base_url}/ping").status_code == 200


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"AIP_HEALTH_ROUTE": "alive"}, "AIP_HEALTH_ROUTE is 'alive'"),
        ({"AIP_PREDICT_ROUTE": "/{x}"}, "AIP_PREDICT_ROUTE is '/{x}'"),
        ({"AIP_HEALTH_ROUTE": "/a", "AIP_PREDICT_ROUTE": "/a"}, "AIP_HEALTH_ROUTE and AIP_PREDICT_ROUTE"),
    ],
)
def test_variables_without_meaning_are_refused(environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=r"must be|write|give") as caught:
        Vertex.from_environ(environ)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/v1/load_lora_adapter"])
def test_a_route_that_needs_a_key_is_no_health_route(path: str) -> None:
    """Health routes are open."""
    service = Service(lambda: LLM("never"), ["never"])
    with pytest.raises(ConfigError, match="where there is another route"):
        build_app(service, Vertex(path, None))
    assert build_app(service, Vertex("/health", None))
