"""Markdown while it is being written."""

from __future__ import annotations

import io
import re

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from corral.cli.chat_markdown import Line, MarkdownStream
from corral.cli.chat_terminal import MarkdownView

# Beginnings, ends and insides of everything that Markdown knows, to be put together in any order.
PIECES = """
# Title⏎|para one two three four five⏎|⏎|- item a⏎|- item with **bold words**, long enough to wrap⏎|text |```⏎
1. one⏎|9. nine⏎|10. ten⏎|2) two⏎|1.⏎|+⏎|2|- |* |#⏎|  - nested⏎|```python⏎|x = 1  # comment      ⏎|⏎⏎|**|`|_
> quote⏎|---⏎|===⏎|    indented⏎|<b>html</b>⏎|[a]: http://x⏎|[link](http://u)|![image](u)|tab\tx|\\⏎|\r⏎|👩‍👩‍👧|~~~⏎
averyveryveryveryveryveryveryverylongword|&nbsp;|\x1b[31m|$$⏎|日本語のテキストです⏎
"""
pieces = st.sampled_from([piece.replace("⏎", "\n") for piece in re.split(r"\||\n", PIECES.strip())])
tables = st.sampled_from(["| a | b |\n|---|--:|\n", "| 1 | 2 |\n", "| 日本 | **x** |\n"])
documents = st.lists(pieces | tables, max_size=14).map("".join)


def new_stream(width: int) -> MarkdownStream:
    return MarkdownStream(Console(file=io.StringIO(), width=width, height=20, force_terminal=True))


def plain(lines: list[Line]) -> list[str]:
    return ["".join(segment.text for segment in line) for line in lines]


def whole(source: str, width: int) -> list[str]:
    stream = new_stream(width)
    stream.push(source)
    return plain(stream.finish())


@settings(max_examples=150)
@given(documents, st.sampled_from([7, 20, 40, 80]), st.lists(st.sampled_from([1, 2, 5, 20]), min_size=1))
def test_what_is_printed_does_not_depend_on_how_the_text_came(
    source: str, width: int, sizes: list[int]
) -> None:
    stream, printed, place, turn = new_stream(width), [], 0, 0
    while place < len(source):
        size = sizes[turn % len(sizes)]
        stream.push(source[place : place + size])
        place, turn = place + size, turn + 1
        printed += plain(stream.update()[0])
    assert printed + plain(stream.finish()) == whole(source, width)


@settings(max_examples=150)
@given(documents, st.integers(0, 300))
def test_the_screen_shows_all_of_what_has_come(source: str, end: int) -> None:
    stream = new_stream(60)
    stream.push(source[:end])
    fixed, moving = stream.update()
    assert plain(fixed + moving) in (whole(source[:end], 60), whole(source[:end].rpartition("\n")[0], 60))


@settings(max_examples=150)
@given(documents)
def test_no_word_is_lost(source: str) -> None:
    # "python" names the language of a fence; rich gives "link (http://u)" for a link.
    expected = re.findall(r"[a-z日本語のテキストです]+", source.replace("python", "").replace("&nbsp;", ""))
    shown = "".join(whole(source, 1000))
    assert all(word in shown for word in expected if len(word) > 1)


def test_a_long_list_and_long_code_do_not_wait_for_their_end() -> None:
    for first, line in (("", "- item {}\n"), ("", "{}. item\n"), ("```python\n", "x = {}\n")):
        stream = new_stream(80)
        stream.push(first + "".join(line.format(number) for number in range(1, 201)))
        fixed, moving = stream.update()
        assert len(fixed) >= 199
        assert len(moving) <= 1


def screen_after(written: str, height: int) -> list[str]:
    """What a terminal shows, with all that has scrolled away, after some output."""
    rows, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[^\x1b]", written):
        if part == "\n":
            row, column = row + 1, 0
            rows += [""] * (row == len(rows))
        elif part == "\r":
            column = 0
        elif part == "\x1b[1A":
            row -= 1
            assert row > len(rows) - height, "a terminal cannot go up beyond its top"
        elif part == "\x1b[2K":
            rows[row] = ""
        elif not part.startswith("\x1b"):
            rows[row] = rows[row][:column].ljust(column) + part + rows[row][column + 1 :]
            column += 1
    return rows


def test_an_answer_taller_than_the_window_is_shown_whole_and_once() -> None:
    table = "| a | b |\n|---|---|\n" + "".join(f"| {row} | word word word |\n" for row in range(30))
    code = "```\n" + "".join(f"line {row}\n" for row in range(30)) + "```\n"
    source = "\n".join(("long words " * 90, table, "> quoted\n" * 30, code, "- item\n" * 30, "The end."))
    file = io.StringIO()
    view = MarkdownView(Console(file=file, width=20, height=12, force_terminal=True))
    for place in range(0, len(source), 5):
        view.write(source[place : place + 5])
        view.redraw()
    view.finish()
    assert screen_after(file.getvalue(), 12) == [*whole(source, 20), ""]


def test_lines_stay_lines_and_code_can_be_copied() -> None:
    assert whole("roses are red\nviolets are blue\n", 80) == ["roses are red", "violets are blue"]
    assert whole("```python\ndef f():\n    return 1\n```\n", 80) == ["def f():", "    return 1"]


def test_the_terminal_cannot_be_steered_by_an_answer() -> None:
    assert whole("a\x1b[31mb\x07c\x9bd\x1b]0;title\x07", 80) == ["a[31mbcd]0;title"]
