"""`corral chat`: a dialog on the terminal, or one answer for a script."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corral.cli import options
from corral.errors import RequestError

if TYPE_CHECKING:
    from corral.cli.chat_file import SavedChat
    from corral.cli.chat_session import ChatSession

_INTERRUPTED = 130

Prompt = Annotated[
    str | None,
    typer.Option("--prompt", "-p", help="Answer this and end; piped input is added to it."),
]
System = Annotated[str | None, typer.Option("--system", "-s", help="The system message.")]
Load = Annotated[Path | None, typer.Option("--load", help="Go on with a dialog that /save wrote.")]
Stats = Annotated[
    bool | None,
    typer.Option("--stats/--no-stats", help="Tokens per second after each answer. Default: on a terminal."),
]


@options.grouped
def chat(
    model: options.Model = options.DEFAULT,
    prompt: Prompt = None,
    system: System = None,
    load: Load = None,
    max_tokens: options.MaxTokens = None,
    choosing: options.Choosing = options.Choosing(),
    running: options.Running = options.Running(),
    adapter: options.Adapter = None,
    prompt_format: options.PromptFormat = None,
    stats: Stats = None,
) -> None:
    """Chat with a model, or get one answer.

    In the chat, Ctrl-C stops an answer and, at an empty prompt, leaves; /help lists the commands. With -p or
    with piped input there is one answer, as plain text where the output is no terminal.

    **Examples**

        corral chat
        corral chat llama-3.2-1b-instruct --system "Answer in one sentence."
        corral chat -p "Name three rivers in France."
        corral chat -p "Summarize:" < notes.txt > summary.txt
        corral chat --load talk.json --temperature 0.7
    """
    question = _question(prompt)
    given = {**({} if max_tokens is None else {"max_tokens": max_tokens}), **choosing.given()}
    saved = _checked(load, given)
    if question is None:
        typer.echo(f"Loading {model}", err=True)
    llm = options.load(model, running, adapter=adapter, prompt_format=prompt_format, for_chat=True)
    from corral.cli.chat_session import ChatSession

    session = ChatSession(
        llm, llm.default_sampling_params(), adapter=None if adapter is None else options.ADAPTER
    )
    if saved is not None:
        session.restore(saved)
    session.params = options.sampling(session.params, **given)
    if system is not None:
        session.system = system
    if question is None:
        _converse(session, stats)
    elif _answer(session, question, stats):
        raise typer.Exit(_INTERRUPTED)


def _question(prompt: str | None) -> str | None:
    """What to answer once, or None for a dialog.

    Raises:
        BadParameter: there is nothing to answer.
        RequestError: standard input is no text.
    """
    piped = _piped_text()
    if prompt is None and piped is None:
        return None
    question = "\n\n".join(part for part in (prompt, piped) if part and part.strip())
    if not question:
        raise typer.BadParameter("the prompt is empty; give a text after -p, or pipe one in")
    return question


def _piped_text() -> str | None:
    if sys.stdin is None:  # closed by whoever started this
        return ""
    if sys.stdin.isatty():
        return None
    try:
        return sys.stdin.buffer.read().decode("utf-8").strip("\n")
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is not UTF-8 text at byte {error.start}") from None


def _checked(load: Path | None, given: dict[str, int | float | None]) -> SavedChat | None:
    """The dialog to go on with. It and the settings are looked at before a model is fetched and read."""
    from corral.cli.chat_file import read_chat
    from corral.engine.sampling.params import SamplingParams

    options.sampling(SamplingParams(), **given)
    return None if load is None else read_chat(load)


def _converse(session: ChatSession, stats: bool | None) -> None:
    from corral.cli.chat_input import ChatInput
    from corral.cli.chat_terminal import ChatTerminal, converse

    terminal = ChatTerminal(stats)
    terminal.say(f"Context: {session.model.max_model_len:,} tokens. /help lists the commands, Ctrl-D leaves.")
    converse(session, ChatInput(), terminal)


def _answer(session: ChatSession, question: str, stats: bool | None) -> bool:
    """Gives one answer; true where the user has interrupted it."""
    from corral.cli.chat_interrupt import stoppable
    from corral.cli.chat_terminal import ChatTerminal

    terminal = ChatTerminal(stats)
    with stoppable() as stop:
        answer = session.ask(question)
        terminal.show(answer, stop)
    if terminal.stats:
        terminal.show_stats(answer, max_tokens=session.params.max_tokens)
    return answer.interrupted
