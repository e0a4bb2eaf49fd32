"""The chat in a real terminal, with a model that says what it is told to."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli import scripted_chat
from tests.cli.terminal import ALT_ENTER, CTRL_C, CTRL_D, ENTER, PROMPT, Terminal, terminal

EVER = " ".join(f"word{number}" for number in range(10_000))


@contextmanager
def chat(
    folder: Path, script: str, seconds: float = 0.0, columns: int = 80, **env: str
) -> Iterator[Terminal]:
    """The chat at its prompt."""
    (folder / "script").write_text(script, encoding="utf-8")
    command = [sys.executable, scripted_chat.__file__, str(folder / "script"), str(seconds)]
    env = {"CORRAL_CACHE": str(folder / "cache"), **env}
    with terminal(command, env, columns) as screen:
        screen.wait_for(PROMPT)
        yield screen


def saved(screen: Terminal, folder: Path) -> list[dict[str, str]]:
    """The messages of the dialog."""
    path = folder / "talk.json"
    screen.send(f"/save {path}{ENTER}")
    screen.wait_for("Saved to")
    screen.wait_for(PROMPT)
    messages: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))["messages"]
    return messages


def test_ctrl_c_stops_the_answer_and_then_leaves(tmp_path: Path) -> None:
    with chat(tmp_path, EVER, 0.01) as screen:
        screen.send("go" + ENTER)
        screen.wait_for("word2")
        screen.send(CTRL_C)
        screen.wait_for("[stopped]")
        screen.wait_for(PROMPT)
        question, answer = saved(screen, tmp_path)
        assert question == {"role": "user", "content": "go"}
        assert EVER.startswith(answer["content"])
        assert "word2" in answer["content"]
        screen.send(CTRL_C)
        assert screen.wait() == 0
        assert "Traceback" not in screen.text


def test_ctrl_c_clears_a_line_and_ctrl_d_leaves(tmp_path: Path) -> None:
    with chat(tmp_path, "Fine.") as screen:
        screen.send("unwanted")
        screen.wait_for("unwanted")
        screen.send(CTRL_C + "wanted" + ENTER)
        screen.wait_for("Fine.")
        screen.wait_for(PROMPT)
        assert saved(screen, tmp_path)[0]["content"] == "wanted"
        screen.send(CTRL_D)
        assert screen.wait() == 0


@pytest.mark.parametrize(
    "keys",
    [
        f"one\\{ENTER}two{ENTER}",
        f"one{ALT_ENTER}two{ENTER}",
        f'"""one{ENTER}two"""{ENTER}',
        f"\x1b[200~one\ntwo\x1b[201~{ENTER}",
    ],
    ids=["backslash", "alt-enter", "quotes", "paste"],
)
def test_a_message_can_have_several_lines(tmp_path: Path, keys: str) -> None:
    with chat(tmp_path, "Fine.") as screen:
        screen.send(keys)
        screen.wait_for("Fine.")
        screen.wait_for(PROMPT)
        assert saved(screen, tmp_path)[0]["content"] == "one\ntwo"


def test_what_is_typed_during_an_answer_waits_for_the_prompt(tmp_path: Path) -> None:
    with chat(tmp_path, "word " * 60 + "end.", 0.01) as screen:
        screen.send("one" + ENTER)
        screen.wait_for("word")
        screen.send("two" + ENTER)
        assert "two" not in screen.wait_for("end.")
        screen.wait_for("end.")
        screen.wait_for(PROMPT)
        assert [message["content"] for message in saved(screen, tmp_path)[::2]] == ["one", "two"]


def test_the_history_comes_back_in_a_new_chat(tmp_path: Path) -> None:
    with chat(tmp_path, "Fine.") as screen:
        screen.send("a question to remember" + ENTER)
        screen.wait_for("Fine.")
        screen.wait_for(PROMPT)
        screen.send(CTRL_D)
        screen.wait()
    with chat(tmp_path, "Fine.") as screen:
        screen.send("\x1b[A")
        screen.wait_for("a question to remember")
    assert (tmp_path / "cache" / "history").stat().st_mode & 0o077 == 0


def test_a_history_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder", encoding="utf-8")
    with chat(tmp_path, "Fine.") as screen:
        screen.send("one" + ENTER)
        screen.wait_for("Fine.")
        screen.wait_for(PROMPT)
        screen.send(CTRL_D)
        assert screen.wait() == 0
        assert "Traceback" not in screen.text


def test_mistakes_do_not_end_the_chat(tmp_path: Path) -> None:
    with chat(tmp_path, "Fine.") as screen:
        for line, sentence in (
            ("/rset", "/rset is not a command, perhaps /reset; see /help"),
            ("/load nowhere.json", "nowhere.json cannot be read: No such file or directory"),
            ("/set temperature hot", "temperature is 'hot'; it must be a number"),
            ("/undo", "there is nothing to undo"),
        ):
            screen.send(line + ENTER)
            screen.wait_for(sentence)
            screen.wait_for(PROMPT)
        screen.send("/quit" + ENTER)
        assert screen.wait() == 0


def test_commands_complete(tmp_path: Path) -> None:
    with chat(tmp_path, "Fine.") as screen:
        screen.send("/sys\tBe kind." + ENTER)
        screen.wait_for("The system message is set")
        screen.send("/set temp\t 0.25" + ENTER)
        screen.wait_for("temperature is 0.25")


def test_a_dumb_terminal_gets_plain_text(tmp_path: Path) -> None:
    with chat(tmp_path, "**Fine**, `thanks`.", TERM="dumb") as screen:
        screen.send("one" + ENTER)
        screen.wait_for("**Fine**, `thanks`.")
        screen.wait_for(PROMPT)
        screen.send(CTRL_D)
        assert screen.wait() == 0


def test_no_color_is_respected(tmp_path: Path) -> None:
    with chat(tmp_path, "```python\nx = 1\n```", NO_COLOR="1") as screen:
        screen.send("one" + ENTER)
        screen.wait_for("x = 1")
        screen.send("/nonsense" + ENTER)
        screen.wait_for("not a command")
        assert not screen.colours()
