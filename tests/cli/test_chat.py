"""`corral chat` as a user runs it, with the default model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.terminal import CTRL_C, CTRL_D, ENTER, PROMPT, terminal

CHAT = (sys.executable, "-m", "corral", "chat")


def run(*arguments: object, piped: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*CHAT, *map(str, arguments)], input=piped, capture_output=True, timeout=300)


def test_piped_text_follows_the_prompt_and_the_answer_is_bare_text(smollm2_path: Path) -> None:
    options = (smollm2_path, "--max-tokens", 12, "--temperature", 0)
    joined = run(*options, "-p", "Say it again:", piped=b"blue\n")
    alone = run(*options, piped=b"Say it again:\n\nblue")
    assert (joined.returncode, joined.stderr) == (0, b"")
    assert joined.stdout == alone.stdout
    assert joined.stdout.endswith(b"\n")
    assert joined.stdout.strip()
    assert b"\x1b" not in joined.stdout


def test_stats_go_to_standard_error(smollm2_path: Path) -> None:
    done = run(smollm2_path, "-p", "Count to ten.", "--max-tokens", 5, "--stats")
    assert b"tokens/s" in done.stderr
    assert b"cut off by max_tokens 5" in done.stderr
    assert b"tokens/s" not in done.stdout


def test_a_closed_pipe_is_one_sentence(smollm2_path: Path) -> None:
    writer = subprocess.Popen(
        [*CHAT, str(smollm2_path), "-p", "Tell me a long story."],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.read(1)
    writer.stdout.close()
    sentence = writer.stderr.read()
    writer.stderr.close()
    assert writer.wait(timeout=300) == 1
    assert sentence == b"corral: standard output was closed before everything was written\n"


@pytest.mark.parametrize(
    ("arguments", "piped", "status", "sentence"),
    [
        ((), b"", 2, "the prompt is empty"),
        (("-p", "  "), b"\n", 2, "the prompt is empty"),
        (("--nonsense",), b"hi", 2, "No such option"),
        (("-p", "hi", "--temperature", "-1"), b"", 1, "corral: temperature is -1.0; it must be at least 0\n"),
        ((), b"caf\xe9", 1, "corral: standard input is not UTF-8 text at byte 3\n"),
        (("-p", "hi", "--load", "absent.json"), b"", 1, "corral: absent.json cannot be read: No such file"),
    ],
)
def test_wrong_usage_is_found_before_a_model_is_looked_for(
    arguments: tuple[str, ...], piped: bytes, status: int, sentence: str
) -> None:
    done = run("no-such-model", *arguments, piped=piped)
    assert done.returncode == status
    assert sentence in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_a_prompt_longer_than_the_context_is_explained(smollm2_path: Path) -> None:
    done = run(smollm2_path, "--context", 20, "-p", "word " * 100)
    assert done.returncode == 1
    assert b"and the context has room for 19; shorten the prompt" in done.stderr
    assert b"Traceback" not in done.stderr


def test_ctrl_c_ends_a_single_answer_with_130(smollm2_path: Path) -> None:
    command = [*CHAT, str(smollm2_path), "-p", "Write a long story about a farmer.", "--stats"]
    with terminal(command, {}) as screen:
        screen.wait_for("Once upon")
        screen.send(CTRL_C)
        assert screen.wait() == 130
        assert "stopped]" in screen.text
        assert "Traceback" not in screen.text


def test_a_dialog_survives_ctrl_c_and_goes_on_in_a_new_process(smollm2_path: Path, tmp_path: Path) -> None:
    talk, env = tmp_path / "talk.json", {"CORRAL_CACHE": str(tmp_path)}
    with terminal([*CHAT, str(smollm2_path)], env) as screen:
        screen.wait_for(PROMPT)
        screen.send("Write a long story about a farmer." + ENTER)
        screen.wait_for("Once upon")
        screen.send(CTRL_C)
        screen.wait_for("stopped]")
        screen.send(f"/save {talk}{ENTER}")
        screen.wait_for("Saved to")
        screen.wait_for(PROMPT)
        screen.send(CTRL_D)
        assert screen.wait() == 0
    saved = json.loads(talk.read_text(encoding="utf-8"))
    assert saved["interrupted"] == [1]
    assert "Once upon" in saved["messages"][1]["content"]
    with terminal([*CHAT, str(smollm2_path), "--max-tokens", "4"], env) as screen:
        screen.wait_for(PROMPT)
        screen.send(f"/load {talk}{ENTER}")
        screen.wait_for("Loaded 1 exchange")
        screen.send("/set max_tokens 4" + ENTER)
        screen.wait_for("max_tokens is 4")
        screen.send("What next?" + ENTER)
        screen.wait_for("cut off by max_tokens 4")
        screen.send(f"/save {talk}{ENTER}")
        screen.wait_for("in place of an older chat")
        screen.wait_for(PROMPT)
        screen.send(CTRL_C)
        assert screen.wait() == 0
    continued = json.loads(talk.read_text(encoding="utf-8"))["messages"]
    assert continued[:2] == saved["messages"]
    assert continued[2]["content"] == "What next?"
    assert continued[3]["content"]


def test_a_dialog_that_no_longer_fits_is_explained_and_kept(smollm2_path: Path, tmp_path: Path) -> None:
    command = [*CHAT, str(smollm2_path), "--context", "100", "--max-tokens", "2"]
    with terminal(command, {"CORRAL_CACHE": str(tmp_path)}, columns=300) as screen:
        screen.wait_for(PROMPT)
        screen.send("Hello." + ENTER)
        screen.wait_for("cut off")
        screen.send("word " * 60 + ENTER)
        screen.wait_for("and the context has room for 99; shorten the prompt")
        screen.wait_for("/undo drops the last exchange, /reset all of them")
        screen.send("/undo" + ENTER)
        screen.wait_for("Dropped: Hello.")
        screen.wait_for(PROMPT)
        screen.send(CTRL_D)
        assert screen.wait() == 0


def test_a_background_job_answers_without_touching_the_terminal(smollm2_path: Path, tmp_path: Path) -> None:
    words = " ".join([*CHAT, str(smollm2_path), "-p", "Hello.", "--max-tokens", "3"])
    script = f"set -m; {words} > {tmp_path}/answer & wait $!; echo status $?"
    with terminal(["bash", "-c", script], {}) as screen:
        screen.wait_for("status 0")
    assert (tmp_path / "answer").read_text(encoding="utf-8").strip()
