"""What a person sees of the data before a run."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from corral.tune.data.inspect import histogram, inspect_data, packing_line
from corral.tune.data.prepare import Prepared
from tests.tune.data.conftest import PromptFormat

Make = Callable[..., Prepared]

ROW = {"messages": [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "4 🙂"}]}


def seen(prepared: Prepared, chatml: PromptFormat, *, terminal: bool = False, **options: Any) -> str:
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=terminal, width=100, color_system="standard" if terminal else None
    )
    inspect_data(prepared, chatml.tokenizer, console, **options)
    return out.getvalue()


def test_plain_text_marks_what_is_trained(made_of: Make, chatml: PromptFormat) -> None:
    text = seen(made_of([ROW] * 4), chatml, rows=1)
    assert text.startswith("row 1 of 4: ")
    assert "<|im_start|>user↵\nWhat is 2+2?<|im_end|>↵\n<|im_start|>assistant↵\n«4 🙂<|im_end|>»\n" in text
    assert "\x1b" not in text
    assert "the same as an earlier one: 3 rows" in text
    assert "row 2 of" not in text
    assert "packing: 4 rows in 1 of 2,048 tokens" in text
    assert "packing" not in seen(made_of([ROW]), chatml, packing=False)


def test_colours_mark_it_on_a_terminal(made_of: Make, chatml: PromptFormat) -> None:
    text = seen(made_of([ROW]), chatml, terminal=True, rows=1)
    assert "\x1b[1;32m4 🙂" in text
    assert "\x1b[90m" in text
    assert "«" not in text


def test_texts_cannot_command_the_terminal(made_of: Make, chatml: PromptFormat) -> None:
    row = {"text": "a\x1b[2Jb\r\x07c \u202e [bold]d[/bold]"}
    for terminal in (False, True):
        text = seen(made_of([row]), chatml, terminal=terminal, rows=1)
        assert "\\x1b[2Jb\\r\\x07c \\u202e [bold]d[/bold]" in text
        assert "\x1b[2J" not in text


@pytest.mark.parametrize(
    ("kind", "titles"), [("dpo", ["chosen", "rejected"]), ("kto", ["desirable", "undesirable"])]
)
def test_preferences_show_both_completions(
    made_of: Make, chatml: PromptFormat, kind: str, titles: list[str]
) -> None:
    text = seen(made_of([{"prompt": "a", "chosen": " b", "rejected": " c"}], kind), chatml)
    assert all(f", {title}: " in text for title in titles)
    assert "a« b<|im_end|>»" in text
    assert "a« c<|im_end|>»" in text


def test_long_documents_are_shown_in_part(made_of: Make, chatml: PromptFormat) -> None:
    prepared = made_of([{"text": "word " * 1000}])
    assert f" … and {prepared.train.lengths[0] - 600} tokens more" in seen(prepared, chatml)


def test_the_histogram_counts_every_length() -> None:
    lengths = np.asarray([5, 5, 6, 90, 104])
    lines = histogram(lengths)
    assert sum(int(line.split()[3]) for line in lines) == 5
    assert lines[0].split() == ["5", "to", "14", "3", "#" * 40]
    assert lines[-1].split() == ["95", "to", "104", "1", "#" * 14]
    assert histogram(np.asarray([7, 7])) == ["  7 to 7  2  " + "#" * 40]


def test_packing_says_how_full_rows_get() -> None:
    assert packing_line(np.asarray([50, 50, 100]), 100) == ("packing: 3 rows in 2 of 100 tokens, 100.0% full")
