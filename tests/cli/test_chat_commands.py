"""The slash commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from corral.cli.chat_commands import COMMANDS, is_command, is_unfinished, run_command, unwrap
from corral.cli.chat_session import SETTINGS, ChatSession
from corral.engine.sampling.params import SamplingParams
from corral.errors import CorralError
from tests.cli.scripted_chat import ScriptedModel


@pytest.fixture
def session() -> ChatSession:
    session = ChatSession(ScriptedModel("Good."), SamplingParams(temperature=0.5))
    with session.ask("One?") as answer:
        list(answer)
    return session


def say(session: ChatSession, line: str) -> str:
    return run_command(session, line).text


def refusal(session: ChatSession, line: str) -> str:
    with pytest.raises(CorralError) as caught:
        run_command(session, line)
    return str(caught.value)


def test_help_names_every_command(session: ChatSession) -> None:
    shown = " ".join(left for left, _ in run_command(session, "/help").rows)
    assert all(f"/{command.name}" in shown for command in COMMANDS)


def test_the_system_message_is_shown_set_and_removed(session: ChatSession) -> None:
    assert say(session, "/system") == "There is no system message."
    say(session, "/system Answer in verse,\nalways.")
    assert session.system == "Answer in verse,\nalways."
    assert say(session, "/system") == "System: Answer in verse,\nalways."
    say(session, '/system """\nBe\nbrief.\n"""')
    assert session.system == "Be\nbrief."
    say(session, '/system ""')
    assert session.system is None


def test_settings_are_shown_changed_and_put_back(session: ChatSession) -> None:
    assert tuple(name for name, _ in run_command(session, "/set").rows) == SETTINGS
    for line in ("/set temperature 0.7", "/set max-tokens=20", "/set Seed 7", "/set top_k  5"):
        run_command(session, line)
    assert session.params == SamplingParams(temperature=0.7, max_tokens=20, seed=7, top_k=5)
    assert say(session, "/set temperature") == "temperature is 0.7"
    for line in ("/set temperature default", "/set max_tokens none", "/set seed none", "/set top_k default"):
        run_command(session, line)
    assert session.params == SamplingParams(temperature=0.5)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/set temperature hot", "temperature is 'hot'; it must be a number"),
        ("/set temperature nan", "temperature is nan; it must be a number"),
        ("/set top_k 2.5", "top_k is 2.5; it must be a whole number"),
        ("/set max_tokens 0", "max_tokens is 0; it must be at least 1"),
        ("/set temprature 1", "temprature is not a setting, perhaps temperature; /set shows all of them"),
        ("/hlep", "/hlep is not a command, perhaps /help; see /help"),
        ("/xyzzy", "/xyzzy is not a command; see /help"),
        ("/", "/ is not a command; see /help"),
        ("/undo 2", "/undo takes nothing after it"),
        ("/save", "/save needs a file, like /save talk.json"),
        ("/load", "/load needs a file, like /load talk.json"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(session: ChatSession, line: str, sentence: str) -> None:
    before = session.saved()
    assert refusal(session, line) == sentence
    assert session.saved() == before


def test_a_dialog_is_saved_and_goes_on_elsewhere(session: ChatSession, tmp_path: Path) -> None:
    path = tmp_path / "my talk.json"
    assert say(session, f"/save {path}") == f"Saved to {path}."
    assert say(session, f'/save "{path}"') == f"Saved to {path}, in place of an older chat."
    other = ChatSession(ScriptedModel("Bad."), SamplingParams())
    assert refusal(other, f"/save {path}") == "there is nothing to save yet"
    assert say(other, f"/load {path}") == f"Loaded 1 exchange from {path}."
    assert other.exchanges == session.exchanges
    assert other.params.temperature == 0.5


def test_retry_gives_an_answer_and_says_when_it_cannot_differ(session: ChatSession) -> None:
    outcome = run_command(session, "/retry")
    assert outcome.answer is not None
    assert outcome.text == ""
    session.set("seed", 3)
    assert "The seed is fixed" in say(session, "/retry")
    session.set("temperature", 0)
    assert "The temperature is 0" in say(session, "/retry")


def test_tokens_say_how_full_the_context_is(session: ChatSession) -> None:
    session.model.max_model_len = 36  # type: ignore[misc]
    assert say(session, "/tokens") == "The dialog takes 9 of 36 tokens (25%); 27 are left."
    run_command(session, "/reset")
    assert say(session, "/tokens") == "The dialog takes 0 of 36 tokens (0%); 36 are left."


def test_undo_says_what_it_dropped(session: ChatSession) -> None:
    assert say(session, "/undo") == "Dropped: One?"


@pytest.mark.parametrize("line", ["/quit", "/exit", "/bye", "/QUIT"])
def test_quit_leaves(session: ChatSession, line: str) -> None:
    assert run_command(session, line).leave


@pytest.mark.parametrize("line", ["/usr/bin/env is what?", " /help", "what is /help?", "/2 + 3", "//"])
def test_other_slashes_are_for_the_model(line: str) -> None:
    assert not is_command(line)


@pytest.mark.parametrize(
    ("typed", "unfinished", "message"),
    [
        ("one line", False, "one line"),
        ("one \\", True, "one \\"),
        ("one \\\ntwo", False, "one \ntwo"),
        ('"""', True, ""),
        ('"""one\ntwo', True, "one\ntwo"),
        ('"""one\n\ntwo"""', False, "one\n\ntwo"),
        ('"""\none\n"""\n', False, "one"),
        ('say """ to me', False, 'say """ to me'),
        ('/system """Be', True, '/system """Be'),
        ('/system """Be\nbrief"""', False, '/system """Be\nbrief"""'),
    ],
)
def test_lines_are_joined_by_backslashes_and_quotes(typed: str, unfinished: bool, message: str) -> None:
    assert is_unfinished(typed) is unfinished
    assert unwrap(typed) == message
