"""Rows as token ids, with those that are trained."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from corral.errors import RenderError
from corral.text.base import render_text
from corral.text.llama3 import Llama3Renderer
from corral.text.messages import Message
from corral.text.rendered import Rendered, Renderer, RenderOptions
from corral.text.tokenizer import Tokenizer
from corral.tune.config import DataConfig
from corral.tune.data.dates import fixed_date
from corral.tune.data.masks import Span, ends_in, trained_tokens, turns_of
from corral.tune.data.parsed import Completion, Dialog, Parsed, Preference, Said, Text, Tools
from corral.tune.data.parting import part_behind
from corral.tune.errors import TuneError
from corral.tune.examples import Example, Item, Mask, Pair, Rated, Tokens

_END_OF_TEXT = ("<|end_of_text|>", "<|endoftext|>", "</s>")


@dataclass(frozen=True)
class _Written:
    """A dialog as tokens [n], with the assistant's turns, the ends of all turns [n], and where its completion
    starts."""

    tokens: Tokens
    turns: list[Span]
    is_end: Mask
    start: int = 0

    @property
    def last(self) -> int:
        """One after the last token that the assistant produced."""
        return self.turns[-1][1] if self.turns else 0


class Writer:
    """Writes rows for one objective.

    Dialogs go through the renderer that serves the model. Texts, and prompts and completions that are texts,
    are taken as they are, with the begin-of-text token where the vocabulary wants one and a token that ends
    them. What stands behind the assistant's last token is left out, unless it is trained: nothing learns from
    it. For "pretrain" all of a row is trained; of preferences and ratings never anything but the completions.
    """

    def __init__(
        self, kind: str, config: DataConfig, tokenizer: Tokenizer, renderer: Renderer | None
    ) -> None:
        self._kind, self._config, self._tokenizer, self._renderer = kind, config, tokenizer, renderer
        self._trims = isinstance(renderer, Llama3Renderer)
        eos = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
        stops = frozenset(eos) | (renderer.stop_ids if renderer is not None else frozenset())
        self._stop_ids = frozenset(i for i in stops if tokenizer.is_control(i))
        named = [tokenizer.control[name] for name in _END_OF_TEXT if name in tokenizer.control]
        self._end_of_document = next(iter(named), tokenizer.eos_id)
        # A completion must end with what stops generation, or the model never stops.
        self._end_of_completion = next((i for i in named if i in self._stop_ids), tokenizer.eos_id)
        self._head_options = RenderOptions(tool_format=config.tool_format, date=fixed_date(renderer))
        self._options = replace(self._head_options, add_generation_prompt=False, assistant_mask=True)

    def items(self, row: Parsed, where: str) -> list[Item]:
        """What a row is trained as: one item, or two where a preference is two rated completions.

        Items may be longer than they should be, and may have no trained token.

        Raises:
            TuneError: the prompt format has no place for the row; `where` begins the sentence.
        """
        try:
            match row:
                case Text():
                    return [self._text(row.text)]
                case Dialog():
                    return [self._dialog(row)]
                case Completion():
                    written = self._with_prompt(row.prompt, row.completion, row.tools)
                    if row.desirable is None:
                        return [self._completed(written, whole=self._trains_all)]
                    return [self._rated(written, row.desirable)]
                case Preference():
                    return self._preference(row)
        except (RenderError, _NoPlace) as error:
            raise TuneError(f"{where}: {error}") from None

    @property
    def _trains_all(self) -> bool:
        return self._kind == "pretrain" or self._config.train_on == "all"

    def _text(self, text: str) -> Example:
        tokens = [*render_text(self._tokenizer, text).tokens]
        if self._end_of_document is not None:
            tokens.append(self._end_of_document)
        trained = np.ones(len(tokens), dtype=np.bool_)
        trained[:1] = False
        if self._end_of_document is not None and self._config.train_on_eos == "none":
            trained[-1:] = False
        return Example(np.asarray(tokens, dtype=np.int32), trained)

    def _dialog(self, row: Dialog) -> Example:
        messages = self._with_system(row.messages)
        written = self._written(*self._whole(messages, row.tools))
        only_last = self._config.train_on == "last" and self._kind != "pretrain"
        untrained: set[int] = set()
        if row.untrained or only_last:
            added = len(messages) - len(row.messages)
            turns_of_messages = _turns_of_messages(messages, written)
            last = max(turns_of_messages)
            for message, turns in turns_of_messages.items():
                if message - added in row.untrained or (only_last and message != last):
                    untrained |= turns
        return self._example(written, whole=self._trains_all, untrained=untrained)

    def _whole(self, messages: tuple[Message, ...], tools: Tools) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """A dialog as tokens, and which the assistant produced."""
        full = self._render(messages, tools, self._options)
        assert full.mask is not None, "it was asked for"
        tokens, mask = full.tokens, full.mask
        for index, message in enumerate(messages):
            # A vocabulary may make one token of a header's line break and one that the answer begins with.
            if message.role == "assistant" and message.content[:1].isspace() and not self._trims:
                head = self._render(messages[:index], tools, self._head_options)
                tokens, mask = part_behind(self._tokenizer, head.tokens, tokens, mask)
        return tokens, mask

    def _completed(self, written: _Written, *, whole: bool) -> Example:
        """A completion behind its prompt, of which nothing is trained unless the whole is."""
        if whole:
            return self._example(written, whole=True)
        turns = range(len(written.turns))
        behind = [turn for turn in turns if written.turns[turn][1] > written.start]
        kept = behind[-1:] if self._config.train_on == "last" else behind
        example = self._example(written, untrained=set(turns) - set(kept))
        example.trained[: written.start] = False  # ends of the prompt's turns too
        return example

    def _rated(self, written: _Written, desirable: bool) -> Rated:
        example = self._completed(written, whole=False)
        stop = int(np.flatnonzero(example.trained)[-1]) + 1 if example.num_trained else written.start
        if not example.trained[max(1, written.start) : stop].all():
            raise _NoPlace("a completion that is rated must be one assistant message")
        return Rated(example.tokens[: written.start], example.tokens[written.start : stop], desirable)

    def _preference(self, row: Preference) -> list[Item]:
        chosen, rejected = (
            self._with_prompt(row.prompt, said, row.tools) for said in (row.chosen, row.rejected)
        )
        if self._kind == "kto":
            return [self._rated(chosen, True), self._rated(rejected, False)]
        return [Pair(self._completed(chosen, whole=False), self._completed(rejected, whole=False))]

    def _example(self, written: _Written, *, whole: bool = False, untrained: Collection[int] = ()) -> Example:
        trained = trained_tokens(
            written.turns, written.is_end, self._config.train_on_eos, whole=whole, untrained=untrained
        )
        last = int(np.flatnonzero(trained)[-1]) + 1 if trained.any() else 1
        stop = max(last, written.last)
        return Example(written.tokens[:stop], trained[:stop])

    def _with_prompt(self, prompt: Said, completion: Said, tools: Tools) -> _Written:
        """A completion behind its prompt, whose tokens are those that the model is served."""
        if isinstance(prompt, str) or isinstance(completion, str):
            assert isinstance(prompt, str), "both are texts"
            assert isinstance(completion, str), "both are texts"
            return self._plain(prompt, completion)
        messages = self._with_system(prompt)
        head = self._render(messages, tools, self._head_options)
        full = self._render((*messages, *completion), tools, self._options)
        assert full.mask is not None, "it was asked for"
        tokens, mask = part_behind(self._tokenizer, head.tokens, full.tokens, full.mask)
        return replace(self._written(tokens, mask), start=len(head.tokens))

    def _plain(self, prompt: str, completion: str) -> _Written:
        head = render_text(self._tokenizer, prompt).tokens
        tail = self._tokenizer.encode(completion, first=not head)
        end = [] if self._end_of_completion is None else [self._end_of_completion]
        tokens = np.asarray([*head, *tail, *end], dtype=np.int32)
        is_end = np.zeros(len(tokens), dtype=np.bool_)
        is_end[len(head) + len(tail) :] = True
        return _Written(tokens, [(len(head), len(tokens))], is_end, len(head))

    def _written(self, tokens: Sequence[int], mask: Sequence[bool] | None) -> _Written:
        assert mask is not None, "it was asked for"
        array = np.asarray(tokens, dtype=np.int32)
        is_end = ends_in(array, self._stop_ids)
        return _Written(array, turns_of(np.asarray(mask, dtype=np.bool_), is_end), is_end)

    def _render(self, messages: Sequence[Message], tools: Tools, options: RenderOptions) -> Rendered:
        if self._renderer is None:
            raise _NoPlace(
                "the row is a dialog, but the model has no prompt format of its own; choose one with "
                "prompt_format"
            )
        return self._renderer.render(messages, tools, options)

    def _with_system(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        system = self._config.system
        if system is None or messages[0].role == "system":
            return messages
        return (Message("system", system), *messages)


def _turns_of_messages(messages: Sequence[Message], written: _Written) -> dict[int, set[int]]:
    """The turns of each assistant message: one, or one for each call where the format allows no more."""
    calls = {i: len(m.tool_calls) for i, m in enumerate(messages) if m.role == "assistant"}
    for sizes in ([1] * len(calls), [max(1, count) for count in calls.values()]):
        if sum(sizes) == len(written.turns):
            starts = np.cumsum([0, *sizes]).tolist()
            return {i: set(range(starts[n], starts[n + 1])) for n, i in enumerate(calls)}
    raise _NoPlace("the prompt format does not tell which tokens belong to which assistant message")


class _NoPlace(Exception):
    """A row that cannot be written; the sentence gets the row in front."""
