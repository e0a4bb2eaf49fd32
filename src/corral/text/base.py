"""Text for base models: no messages, only the beginning of a text."""

from __future__ import annotations

from collections.abc import Iterable

from corral.text.rendered import Rendered
from corral.text.tokenizer import Tokenizer


def render_text(tokenizer: Tokenizer, text: str, extra_stop_ids: Iterable[int] = ()) -> Rendered:
    """Text to be continued by a base model.

    The begin-of-text token comes once, where the vocabulary wants it: if the text itself starts with that
    token's name, that is taken for it. Any other control token's name in the text is ordinary text.
    """
    stop_ids = {*extra_stop_ids, *(() if tokenizer.eos_id is None else (tokenizer.eos_id,))}
    start: tuple[int, ...] = ()
    if tokenizer.adds_bos and tokenizer.bos_id is not None:
        start = (tokenizer.bos_id,)
        text = _without_start(text, {name for name, i in tokenizer.control.items() if i == tokenizer.bos_id})
    tokens = (*start, *tokenizer.encode(text, first=True))
    return Rendered(tokens, (False,) * len(tokens), frozenset(stop_ids))


def _without_start(text: str, names: set[str]) -> str:
    while any(text.startswith(name) for name in names):
        for name in names:
            text = text.removeprefix(name)
    return text
