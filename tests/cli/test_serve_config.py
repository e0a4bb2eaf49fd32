"""`corral serve`'s options and its configuration file: what goes before what, and what is refused."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from corral.cli import serve as verb
from corral.cli.main import run
from corral.cli.options import Running
from corral.cli.serve_config import read_config
from corral.cli.serve_options import Address, Keys, Limits, Observability, Served
from corral.errors import ConfigError
from corral.server.settings import ServerSettings

DOCS = Path(__file__).parents[2] / "docs" / "serving-operations.md"


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[ServerSettings]:
    """The settings with which `corral serve` would serve."""
    asked: list[ServerSettings] = []
    monkeypatch.setattr(verb, "_serve", lambda settings: asked.append(settings))
    for name in ("CORRAL_API_KEY", "CORRAL_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    return asked


def _file(folder: Path, text: str) -> str:
    path = folder / "serve.yaml"
    path.write_text(text)
    return str(path)


def test_without_options_it_serves_this_machine_alone(settings: list[ServerSettings]) -> None:
    assert run(["serve"]) == 0
    (asked,) = settings
    assert asked == ServerSettings(engine=asked.engine)
    assert asked.is_local
    assert asked.engine["max_waiting_requests"] == 512


def test_a_flag_goes_before_the_environment_and_that_before_the_file(
    settings: list[ServerSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _file(
        tmp_path,
        "model: ./from-file\nport: 1111\nhost: 0.0.0.0\nspeculate: off\ncontext: 2048\nlog_prompts: true\n"
        "api-key: [one, two]\nserved-model-name: single\ngrace-seconds: 5\nmax-body: 1MiB\n"
        "exact-activations: true\n",
    )
    monkeypatch.setenv("CORRAL_API_KEY", "three")
    assert run(["serve", "--config", config, "--port", "2222", "--context", "4096"]) == 0
    (asked,) = settings
    assert (asked.model, asked.port, asked.host) == ("./from-file", 2222, "0.0.0.0")
    assert asked.engine["max_model_len"] == 4096
    assert asked.engine["exact_activations"] is True
    assert "speculative_config" not in asked.engine
    assert asked.log_prompts
    assert asked.served_model_name == ("single",)
    assert asked.grace_seconds == 5.0
    assert asked.max_body == 2**20
    assert len(asked.api_keys) == 1  # that of the environment


def test_a_model_that_is_named_goes_before_the_file_s(settings: list[ServerSettings], tmp_path: Path) -> None:
    assert run(["serve", "mine", "--config", _file(tmp_path, "model: theirs\n")]) == 0
    assert settings[0].model == "mine"


def test_a_bound_of_zero_is_not_taken_for_none_given(settings: list[ServerSettings]) -> None:
    assert run(["serve", "--max-waiting-requests", "0"]) == 0
    assert settings[0].engine["max_waiting_requests"] == 0  # which the engine refuses


def test_flags_may_be_given_several_times(settings: list[ServerSettings], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice=sk-1\nsk-2\n")
    flags = ["--api-key", "a", "--api-key", "b", "--api-key-file", str(keys), "--admin-key", "c"]
    flags += ["--adapter", "x=/loras/x", "--adapter", "y=/loras/y=1", "--cors-origin", "https://a.example"]
    assert run(["serve", *flags]) == 0
    (asked,) = settings
    assert [key.name for key in asked.api_keys] == ["key-1", "key-2", "alice", "line-2"]
    assert [key.name for key in asked.admin_keys] == ["admin-1"]
    assert asked.adapters == {"x": Path("/loras/x"), "y": Path("/loras/y=1")}
    assert asked.cors_origins == ("https://a.example",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot: 8000\n", "line 1: 'prot' is no setting; did you mean 'port'?"),
        ("port: 1\n# more\nqqqq: 2\n", "line 3: 'qqqq' is no setting; `corral serve --help`"),
        ("config: other.yaml\n", "line 1: 'config' is no setting"),
        ("port: 1\nport: 2\n", "line 2: 'port' stands twice"),
        ("log-format: text\nlog_format: json\n", "line 2: 'log_format' stands twice"),
        ("port: '80'\n", "line 1: port is '80'; it must be a whole number"),
        ("port: 80.5\n", "it must be a whole number"),
        ("port: true\n", "it must be a whole number"),
        ("metrics-open: yes\n", "it must be true or false"),
        ("grace-seconds: long\n", "it must be a number"),
        ("host: [a]\n", "it must be a text"),
        ("api-key: [{a: b}]\n", "it must be a text"),
        ("- port\n", "is no list of settings"),
        ("port: [1\n", "this is no YAML"),
        ("host: !!python/object/apply:os.system [ls]\n", "this is no YAML"),
        ("? [a]\n: 1\n", "this is no name of a setting"),
        ("host: " + "[" * 1500, "too deeply"),
        ("port: &a 1\nhost: *b\n", "this is no YAML"),
        ("port: 2026-13-45\n", "line 1: port cannot be read"),
        ("port: !!int x\n", "line 1: port cannot be read"),
        ("port: " + "9" * 5000, "line 1: port cannot be read"),
    ],
)
def test_a_file_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    path = Path(_file(tmp_path, text))
    with pytest.raises(ConfigError, match=re.escape(words)) as refused:
        read_config(path)
    assert str(path) in str(refused.value)


def test_a_refusal_does_not_write_out_what_aliases_multiply(tmp_path: Path) -> None:
    levels = [f"&a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]" for i in range(5)]
    with pytest.raises(ConfigError, match="it must be a text") as refused:
        read_config(Path(_file(tmp_path, f"host: [{', '.join(levels)}]\n")))
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("text", ["", "# nothing\n", "host:\n"])
def test_an_empty_file_changes_nothing(tmp_path: Path, text: str) -> None:
    assert read_config(Path(_file(tmp_path, text))) == {}


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--config", str(tmp_path / "none.yaml")]) == 1
    assert (
        capsys.readouterr().err == f"corral: {tmp_path}/none.yaml cannot be read: No such file or directory\n"
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--port", "99999"], "port is 99999"),
        (["--max-body", "much"], "--max-body is 'much'"),
        (["--max-body", "0"], "max_body is 0"),
        (["--tls-cert", "c.pem"], "tls_cert is given without tls_key"),
        (["--cors-origin", "https://a.example/path"], "cors_origins has 'https://a.example/path'"),
        (["--log-format", "xml"], "log_format is 'xml'"),
        (["--adapter", "folder"], "--adapter is 'folder'"),
        (["--adapter", "a=x", "--adapter", "a=y"], "two adapters are called 'a'"),
        (["m", "--adapter", "m=x"], "'m' names both the model and an adapter"),
        (["--api-key", "a b"], "is no key"),
        (["--api-key", "a", "--admin-key", "a"], "are the same"),
        (["--root-path", "llm"], "root_path is 'llm'"),
        (["--request-timeout", "0"], "request_timeout is 0"),
        (["--requests-per-minute", "0"], "requests_per_minute is 0"),
        (["--otlp-endpoint", "collector"], "otlp_endpoint is 'collector'"),
        (["--host", ""], "host is empty"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    settings: list[ServerSettings], capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert run(["serve", *flags]) == 1
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert settings == []


def _names() -> list[str]:
    groups: tuple[Any, ...] = (Served, Address, Keys, Limits, Observability, Running)
    return [field.name.replace("_", "-") for group in groups for field in fields(group)]


def test_every_flag_can_stand_in_a_file(tmp_path: Path) -> None:
    path = _file(tmp_path, "".join(f"{name}: null\n" for name in ["model", *_names()]))
    assert read_config(Path(path)) == {}


def test_the_documentation_names_every_setting() -> None:
    text = DOCS.read_text("utf-8")
    assert [name for name in _names() if f"`--{name}" not in text and f"`{name}`" not in text] == []


def test_the_example_of_the_documentation_can_be_used(tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(# serve\.yaml.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert example is not None
    read = read_config(Path(_file(tmp_path, example[1])))
    assert len(read) == len(yaml.safe_load(example[1]))
