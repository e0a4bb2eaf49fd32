"""The command as a user meets it: verbs, exit codes, one-sentence errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import corral
from corral.cli.main import run
from tests.checkpoints.writers import write_chat_model, write_meta
from tests.kernels.networks import needs_native
from tests.random_models import SMALL_CHAT, random_model

VERBS = (
    "chat",
    "serve",
    "generate",
    "pull",
    "info",
    "export",
    "plan",
    "bench",
    "quantize",
    "merge",
    "cache",
    "perplexity",
    "compare",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small chat model as a Hugging Face folder."""
    write_chat_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def corral_process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the installed command in a process of its own, out of reach of any network."""

    def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100", **environment}
        command = [sys.executable, "-m", "corral", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=env, input="", timeout=120)

    return process


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"corral {corral.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Examples" in shown
    assert f"corral {verb}" in shown


def test_help_comes_without_torch() -> None:
    code = (
        "import sys\nfrom corral.cli.main import run\n"
        f"for verb in {VERBS!r}: run([verb, '--help'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'tokenizers', 'huggingface_hub', 'jinja2', 'gguf'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_transformers_is_never_imported(folder: Path) -> None:
    code = (
        "import sys\nfrom corral.cli.main import run\n"
        f"assert run(['chat', {str(folder)!r}, '-p', 'hi', '--max-tokens', '2']) == 0\n"
        f"assert run(['info', {str(folder)!r}]) == 0\n"
        "sys.exit('transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, input="")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["fly"],
        ["chat", "--temperature", "warm"],
        ["export"],
        ["export", "x", "y", "--to", "pdf"],
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_generate_writes_the_prompt_and_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "hello", "--model", str(folder), "--max-tokens", "8", "--seed", "1"]
    assert run(arguments) == 0
    first = capsys.readouterr().out
    assert first.startswith("hello")
    assert run(arguments) == 0
    assert capsys.readouterr().out == first


@needs_native
def test_models_run_with_the_kernels_that_are_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "hello", "--model", str(folder), "--max-tokens", "4", "--dtype", "float32"]
    texts = set()
    for flags in ([], ["--kernels", "torch"], ["--kernels", "native", "--exact-activations"]):
        assert run([*command, *flags, "--threads", "2"]) == 0
        texts.add(capsys.readouterr().out)
    assert len(texts) == 1
    for flags, said in (
        (["--kernels", "fast"], "kernels is 'fast'; it must be one of auto, native, torch"),
        (["--threads", "0"], "threads is 0; it must be at least 1"),
    ):
        assert run([*command, *flags]) == 1
        assert said in capsys.readouterr().err


def test_info_tells_what_a_model_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == SMALL_CHAT.num_parameters
    assert facts["context"] == 64
    assert facts["format"] == "safetensors"
    assert facts["chat"] == {
        "prompt_format": "template",
        "system_role": True,
        "tools": False,
        "assistant_mask": False,
    }
    assert run(["info", str(folder)]) == 0
    assert f"{SMALL_CHAT.num_parameters:,}" in capsys.readouterr().out


def test_export_writes_a_folder_that_can_chat(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exported"
    assert run(["export", str(folder), "--to", "hf", str(out), "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert run(["info", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stored_as"] == {"BF16": 12}


def edited(name: str, change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(change((folder / name).read_text()))


BAD: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "a name that exists nowhere": (lambda _: None, ["chat", "lama-3.1-8b", "-p", "x"], "Did you mean"),
    "a path that leads nowhere": (lambda _: None, ["chat", "./nowhere", "-p", "x"], "nowhere"),
    "a folder with no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        ["chat", "MODEL", "-p", "x"],
        "weights",
    ),
    "an unknown rope type": (
        edited(
            "config.json", lambda t: t.replace('"rope_scaling": null', '"rope_scaling": {"type": "yarn"}')
        ),
        ["chat", "MODEL", "-p", "x"],
        "yarn",
    ),
    "a tokenizer of another model": (
        edited("config.json", lambda t: t.replace('"vocab_size": 400', '"vocab_size": 200')),
        ["chat", "MODEL", "-p", "x"],
        "tokens but the model's embedding has 200 rows",
    ),
    "a base model without a template": (
        edited("tokenizer_config.json", lambda _: "{}"),
        ["chat", "MODEL", "-p", "x"],
        "base model without a chat template",
    ),
    "a context longer than the model's": (
        lambda _: None,
        ["chat", "MODEL", "-p", "x", "--context", "65"],
        "max_model_len is 65, but the model's context is 64",
    ),
    "a prompt longer than the context": (
        lambda _: None,
        ["chat", "MODEL", "-p", "many words " * 90],
        "and the context has room for 63",
    ),
    "a sampling value out of range": (
        lambda _: None,
        ["generate", "x", "--model", "MODEL", "--top-p", "2"],
        "top_p is 2",
    ),
    "an unknown dtype": (lambda _: None, ["chat", "MODEL", "-p", "x", "--dtype", "int3"], "dtype is 'int3'"),
    "a device that is not there": (
        lambda _: None,
        ["chat", "MODEL", "-p", "x", "--device", "tpu"],
        "device 'tpu' is not available",
    ),
    "an unknown prompt format": (
        lambda _: None,
        ["chat", "MODEL", "-p", "x", "--prompt-format", "morse"],
        "--prompt-format is 'morse'",
    ),
    "an empty prompt": (lambda _: None, ["generate", "", "--model", "MODEL"], "prompt is empty"),
    "an export over something": (lambda _: None, ["export", "MODEL", "MODEL"], "is not an empty folder"),
    "a plan for a context that is too long": (
        lambda _: None,
        ["plan", "llama-3-8b", "--context", "100000"],
        "--context is 100000, but the model sees at most 8192",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_one_sentence_for(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("sys.stdin", None)
    damage, arguments, said = BAD[name]
    damage(folder)
    assert run([str(folder) if argument == "MODEL" else argument for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("corral: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_debug_shows_the_traceback(
    corral_process: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    result = corral_process("--debug", "info", str(tmp_path))
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "Traceback" not in corral_process("info", str(tmp_path)).stderr


def test_a_model_that_is_not_there_without_a_network(
    corral_process: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    result = corral_process(
        "info", "llama-3.1-8b-instruct", HF_HOME=str(tmp_path), CORRAL_CACHE=str(tmp_path)
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "llama-3.1-8b-instruct" in result.stderr


def test_a_closed_output_pipe_is_one_sentence_and_not_a_traceback(folder: Path) -> None:
    command = f"{sys.executable} -m corral generate hello --model {folder} --max-tokens 50 --seed 1"
    script = f"({command}; echo status $? >&2) | true"
    result = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert "status 1" in result.stderr
    assert "Traceback" not in result.stderr
    assert "output was closed" in result.stderr


def test_a_meta_checkpoint_chats_when_it_is_told_its_format(
    tmp_path: Path,
    llama_models_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    monkeypatch.setattr("sys.stdin", None)
    config = replace(SMALL_CHAT, vocab_size=128256, max_position_embeddings=8192)
    write_meta(random_model(config), tmp_path / "checkpoint", 2)
    vocabulary = llama_models_folder / "llama3" / "tokenizer.model"
    (tmp_path / "checkpoint" / "tokenizer.model").write_bytes(vocabulary.read_bytes())
    arguments = ["chat", str(tmp_path / "checkpoint"), "-p", "hi", "--max-tokens", "3"]
    assert run(arguments) == 1
    assert "--prompt-format" in capsys.readouterr().err
    assert run([*arguments, "--prompt-format", "llama-3"]) == 0
    (tmp_path / "checkpoint").rename(tmp_path / "Meta-Llama-3-8B-Instruct")
    assert run(["chat", str(tmp_path / "Meta-Llama-3-8B-Instruct"), *arguments[2:]]) == 0
