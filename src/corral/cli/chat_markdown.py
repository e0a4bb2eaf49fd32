"""Markdown that is shown while it is being written.

A block that later text cannot change any more is printed for good and scrolls away like any output. Only the
rest, a few lines at most as a rule, is drawn anew with each piece; so long answers neither flicker nor get
cut at the window's height.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich import markdown
from rich.console import Console, ConsoleOptions, RenderResult
from rich.rule import Rule
from rich.segment import Segment
from rich.syntax import Syntax

Line = list[Segment]

# What would steer the terminal, and no text: the C0 and C1 controls but the tab and the line feed.
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}

# The beginning of a list item, heading, quote or fence, of which nothing can be shown yet.
_MARKER = re.compile(r"\s*(\d+[.)]?|[-*+>~`]+|#+)\s*")


class MarkdownStream:
    """Takes text in pieces and divides its rendering into lines to print for good and lines that may change.

    The lines for good, put together, are the rendering of the whole text, however it was cut into pieces.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun = False  # whether anything was printed for good
        self._source = ""  # what is not printed for good, except for the first `_printed` characters
        self._printed = 0

    def push(self, text: str) -> None:
        """Adds a piece; control characters in it are left out."""
        self._source += text.translate(_CONTROLS)

    def update(self) -> tuple[list[Line], list[Line]]:
        """Lines to print for good now, and the lines below them that the next call replaces."""
        # A line that is still growing may look like a new block and turn out to belong to the one before.
        whole = self._source[: self._source.rfind("\n") + 1]
        *finished, last = _blocks(whole)
        fixed = self._print(finished)
        stable = _stable_prefix(last)
        if stable > self._printed:
            fixed += self._new_lines(last[:stable], self._printed, self._begun)
            self._begun, self._printed = self._begun or bool(fixed), stable
        return fixed, self._moving()

    def finish(self) -> list[Line]:
        """The lines that remain."""
        return self._print(_blocks(self._source))

    def _print(self, blocks: list[str]) -> list[Line]:
        """The lines of complete blocks, which are done with."""
        fixed: list[Line] = []
        for block in blocks:
            fixed += self._new_lines(block, self._printed, self._begun)
            self._begun, self._printed = self._begun or bool(fixed), 0
            self._source = self._source[len(block) :]
        return fixed

    def _moving(self) -> list[Line]:
        source, printed, begun = self._source, self._printed, self._begun
        growing = source.rfind("\n") + 1
        if _MARKER.fullmatch(source, growing):
            source = source[:growing]
        lines: list[Line] = []
        for block in _blocks(source):
            lines += self._new_lines(block, printed, begun)
            begun, printed = begun or bool(lines), 0
        return lines

    def _new_lines(self, block: str, printed: int, begun: bool) -> list[Line]:
        """The lines of a block after those of its first `printed` characters."""
        done = len(self._lines(block[:printed]))
        lines = self._lines(block)[done:]
        return [[], *lines] if lines and begun and not done else lines

    def _lines(self, source: str) -> list[Line]:
        if not source.strip():
            return []
        options = self._console.options.update(height=None)
        rendered = self._console.render_lines(_Markdown(source), options, pad=False)
        lines = [_trim(line) for line in rendered]
        begin = next((index for index, line in enumerate(lines) if line), len(lines))
        while len(lines) > begin and not lines[-1]:
            lines.pop()
        return lines[begin:]


class _Heading(markdown.Heading):
    LEVEL_ALIGN = dict.fromkeys(("h1", "h2", "h3", "h4", "h5", "h6"), "left")


class _CodeBlock(markdown.CodeBlock):
    """Code without a margin, so that it can be copied from the screen as it is."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        if code:
            yield Syntax(code, self.lexer_name, theme=self.theme, word_wrap=True, background_color="default")


class _HorizontalRule(markdown.HorizontalRule):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Rule(style=console.get_style("markdown.hr", default="none"))


class _List(markdown.ListElement):
    """A list whose items look the same whatever comes after them."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for number, item in enumerate(self.items, 1 if self.list_start is None else self.list_start):
            mark = "• " if self.list_type == "bullet_list_open" else f"{number}. "
            style = console.get_style("markdown.item.bullet", default="none")
            room = options.update(width=max(options.max_width - len(mark), 1))
            lines = console.render_lines(item.elements, room, style=item.style) or [[]]
            for index, line in enumerate(lines):
                yield Segment(" " * len(mark) if index else mark, style)
                yield from line
                yield Segment.line()


class _Markdown(markdown.Markdown):
    """An answer's Markdown: everything that was written shows, line ends are kept, nothing is centred."""

    elements = {  # noqa: RUF012 - rich declares it so
        **markdown.Markdown.elements,
        "heading_open": _Heading,
        "fence": _CodeBlock,
        "code_block": _CodeBlock,
        "hr": _HorizontalRule,
        "bullet_list_open": _List,
        "ordered_list_open": _List,
    }

    def __init__(self, source: str) -> None:
        super().__init__("", code_theme="ansi_dark", justify="default", hyperlinks=False)
        self.parsed = _parse(source)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"
                elif child.type == "image":
                    child.type, child.tag, child.children = "text", "", None
                    child.content = f"{child.content} ({child.attrs['src']})"


def _parse(source: str) -> list[Token]:
    # Raw HTML and link definitions would be dropped from the output.
    parser = MarkdownIt().enable(["table", "strikethrough"])
    return parser.disable(["html_block", "html_inline", "reference"]).parse(source)


def _blocks(source: str) -> list[str]:
    """The top-level blocks of a text, at least one; together they are the text."""
    tokens = (token for token in _parse(source) if token.level == 0 and token.nesting >= 0)
    rows = [token.map[0] for token in tokens if token.map]
    offsets = _line_offsets(source)
    starts = [0, *(offsets[row] for row in rows[1:]), len(source)]
    return [source[start:end] for start, end in pairwise(starts)]


def _stable_prefix(source: str) -> int:
    """How much of one block, of whole lines, already has the lines that it will have in the end.

    Lines of code, and all items of a list but the last; any other block may still change as a whole.
    """
    tokens = [token for token in _parse(source) if token.map]
    if not tokens:
        return 0
    if tokens[0].type == "fence":
        return len(source)
    items = [token for token in tokens if token.type == "list_item_open" and token.level == 1]
    if len(items) < 2 or items[-1].map is None:
        return 0
    return _line_offsets(source)[items[-1].map[0]]


def _line_offsets(source: str) -> list[int]:
    offsets = [0]
    for line in source.split("\n"):
        offsets.append(offsets[-1] + len(line) + 1)
    return offsets


def _trim(line: Iterable[Segment]) -> Line:
    """A line without the spaces that fill it up to the width."""
    trimmed = list(line)
    while trimmed and not trimmed[-1].text.strip():
        trimmed.pop()
    if trimmed:
        text, style, control = trimmed[-1]
        trimmed[-1] = Segment(text.rstrip(), style, control)
    return trimmed
