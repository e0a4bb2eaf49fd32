"""The state of a dialog, and a dialog as a file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.cli.chat_file import ChatError, read_chat, write_chat
from corral.cli.chat_session import Answer, ChatSession, Exchange
from corral.engine.outputs import Delta
from corral.engine.sampling.params import SamplingParams
from corral.errors import RequestError
from corral.text.messages import Message
from tests.cli.scripted_chat import ScriptedModel

text = st.text(st.characters(codec="utf-8"))
exchanges = st.builds(
    lambda question, replies, interrupted: Exchange(
        Message("user", question),
        tuple(Message("assistant", reply) for reply in replies),
        interrupted or not replies,
    ),
    text,
    st.lists(text, max_size=2),
    st.booleans(),
)
params = st.builds(
    SamplingParams,
    temperature=st.floats(0, 5),
    top_p=st.floats(0.1, 1),
    top_k=st.integers(0, 100),
    seed=st.none() | st.integers(0, 2**64 - 1),
    max_tokens=st.none() | st.integers(1, 100),
)


def new_session(answer: str = "All is well.") -> tuple[ChatSession, ScriptedModel]:
    model = ScriptedModel(answer)
    return ChatSession(model, SamplingParams(temperature=0.5)), model


def finish(answer: Answer, pieces: int | None = None) -> None:
    """Takes an answer to its end, or stops after some pieces."""
    with answer:
        for number, _ in enumerate(answer, 1):
            if number == pieces:
                break


def said(session: ChatSession) -> list[str]:
    return [f"{message.role}: {message.content}" for message in session.messages()]


def test_the_model_reads_the_whole_dialog() -> None:
    session, model = new_session()
    session.system = "Be kind."
    finish(session.ask("One?"))
    finish(session.ask("Two?"))
    assert [message.content for message in model.asked[1]] == ["Be kind.", "One?", "All is well.", "Two?"]
    assert session.exchanges[1] == Exchange(Message("user", "Two?"), (Message("assistant", "All is well."),))


def test_a_stopped_answer_keeps_what_was_said_and_is_marked() -> None:
    session, model = new_session()
    finish(session.ask("One?"), pieces=2)
    assert session.exchanges[0].interrupted
    assert said(session) == ["user: One?", "assistant: All is"[: len("assistant: ") + 6]]
    finish(session.retry())
    assert not session.exchanges[0].interrupted
    assert model.asked[0] == model.asked[1]


def test_a_question_stopped_before_its_answer_is_not_read_again_but_can_be_retried() -> None:
    session, model = new_session(answer="")
    with session.ask("One?"):
        pass
    assert said(session) == []
    model.text = "Now."
    finish(session.retry())
    assert said(session) == ["user: One?", "assistant: Now."]


def test_a_repetition_stopped_before_it_begins_keeps_the_old_answer() -> None:
    session, _ = new_session()
    finish(session.ask("One?"))
    with session.retry():
        pass
    assert said(session) == ["user: One?", "assistant: All is well."]


def test_a_failure_within_an_answer_leaves_the_dialog_as_it_was() -> None:
    session, _ = new_session()
    answer = session.ask("One?")
    next(iter(answer))
    error = RequestError("the device is gone")
    answer.__exit__(RequestError, error, None)
    assert session.exchanges == ()


def test_undo_and_reset_drop_exchanges_and_keep_the_system_message() -> None:
    session, _ = new_session()
    session.system = "Be kind."
    for question in ("One?", "Two?", "Three?"):
        finish(session.ask(question))
    assert session.undo().question.content == "Three?"
    assert len(session.messages()) == 5
    session.reset()
    assert said(session) == ["system: Be kind."]
    with pytest.raises(ChatError, match="nothing to undo"):
        session.undo()
    with pytest.raises(ChatError, match="no answer to try again"):
        session.retry()


def test_a_wrong_setting_changes_nothing() -> None:
    session, _ = new_session()
    with pytest.raises(RequestError, match="temperature is -1; it must be at least 0"):
        session.set("temperature", -1)
    assert session.params == SamplingParams(temperature=0.5)


@pytest.mark.parametrize("message", ["", "  \n", "\udcff"])
def test_a_message_without_text_is_refused(message: str) -> None:
    session, model = new_session()
    with pytest.raises(ChatError, match="the message is"):
        session.ask(message)
    assert model.asked == []


@given(st.lists(exchanges, max_size=4), text, params)
def test_a_saved_dialog_comes_back_as_it_was(
    dialog: list[Exchange], system: str, settings: SamplingParams
) -> None:
    session, _ = new_session()
    session.exchanges, session.system, session.params = tuple(dialog), system, settings
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "talk.json"
        write_chat(path, session.saved())
        other, _ = new_session()
        other.restore(read_chat(path))
        assert [entry.name for entry in Path(folder).iterdir()] == ["talk.json"]
    assert other.exchanges == session.exchanges
    assert (other.system, other.params) == (session.system, session.params)


def test_a_saved_dialog_is_in_the_form_that_others_read(tmp_path: Path) -> None:
    session, _ = new_session("Ünï")
    session.system = "Be kind."
    finish(session.ask("One?"))
    write_chat(tmp_path / "talk.json", session.saved())
    fields = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert fields["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Ünï"},
    ]
    assert fields["model"] == "scripted"
    assert fields["settings"]["temperature"] == 0.5


def test_a_bare_list_of_messages_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "messages.json"
    path.write_text('[{"role": "user", "content": [{"type": "text", "text": "One?"}]}]', encoding="utf-8")
    session, _ = new_session()
    session.restore(read_chat(path))
    assert session.exchanges == (Exchange(Message("user", "One?"), (), interrupted=True),)


def test_only_a_saved_chat_is_overwritten(tmp_path: Path) -> None:
    session, _ = new_session()
    finish(session.ask("One?"))
    precious = tmp_path / "thesis.json"
    precious.write_text('{"chapters": 9}', encoding="utf-8")
    with pytest.raises(ChatError, match="exists and is not a saved chat"):
        write_chat(precious, session.saved())
    assert precious.read_text(encoding="utf-8") == '{"chapters": 9}'
    assert write_chat(tmp_path / "talk.json", session.saved()) is False
    assert write_chat(tmp_path / "talk.json", session.saved()) is True


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("3", "an object with a list of messages"),
        (
            '{"messages": [{"role": "user"}, {"role": "robot", "content": "x"}]}',
            r"messages\[1\]: role is 'robot'",
        ),
        ('[{"role": "user", "content": "\\ud800"}]', r"messages\[0\]: content is not valid Unicode"),
        ('{"messages": [], "settings": 3}', "settings must be an object"),
        ('{"messages": [], "interrupted": ["x"]}', "interrupted must be a list"),
        ('{"messages": [], "settings": {"heat": 1}}', "unknown setting 'heat'"),
        ('{"messages": [], "settings": {"top_p": 2}}', "top_p is 2"),
        ('[{"role": "assistant", "content": "x"}]', r"messages\[0\] is from the assistant"),
        (
            '[{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]',
            r"messages\[1\] is a system message",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_explained_and_nothing_is_lost(
    tmp_path: Path, content: str, reason: str
) -> None:
    session, _ = new_session()
    finish(session.ask("One?"))
    before = session.saved()
    (tmp_path / "talk.json").write_text(content, encoding="utf-8")
    with pytest.raises((ChatError, RequestError), match=reason):
        session.restore(read_chat(tmp_path / "talk.json"))
    assert session.saved() == before


def test_files_that_cannot_be_reached_are_explained(tmp_path: Path) -> None:
    session, _ = new_session()
    with pytest.raises(ChatError, match=r"absent\.json cannot be read: No such file"):
        read_chat(tmp_path / "absent.json")
    with pytest.raises(ChatError, match=r"talk\.json cannot be written: No such file"):
        write_chat(tmp_path / "absent" / "talk.json", session.saved())
    with pytest.raises(ChatError, match="exists and is not a saved chat"):
        write_chat(tmp_path, session.saved())


class Pieces:
    """A stream of an answer that notes when it is closed."""

    def __init__(self, *pieces: Delta) -> None:
        self._pieces, self.closed = iter(pieces), False

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        return next(self._pieces)

    def close(self) -> None:
        self.closed = True


def test_the_end_of_an_answer_ends_the_work_on_it() -> None:
    pieces = Pieces(Delta("a", (1,)), Delta("b", (2,)))
    answer = Answer(pieces, lambda _: None)
    finish(answer, 1)
    assert (answer.text, answer.interrupted, pieces.closed) == ("a", True, True)
    failing = Answer(Pieces(Delta("a", (1,))), lambda _: pytest.fail("a failed answer was kept"))
    with pytest.raises(KeyError), failing:
        raise KeyError


def test_an_answer_that_the_model_could_not_end_counts_as_interrupted() -> None:
    session, model = new_session()
    model.stream_chat = lambda *_, **__: Pieces(Delta("All", (1,)), Delta("", (), "cancelled"))  # type: ignore[method-assign]
    finish(session.ask("Is all well?"))
    assert session.exchanges[-1].interrupted
