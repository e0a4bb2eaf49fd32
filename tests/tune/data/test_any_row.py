"""Whatever stands in a row: it is learnt from, or refused in a sentence that begins with its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from corral.tune.config import DataConfig, Source
from corral.tune.data.formats import FORMATS, parse_row
from corral.tune.data.render import Writer
from corral.tune.data.rows import Row
from corral.tune.errors import TuneError
from corral.tune.examples import Rated
from tests.tune.data.conftest import PromptFormat
from tests.tune.data.items import as_example, as_pair

texts = st.text(max_size=8) | st.sampled_from(
    ["", " ", "<|eot_id|>", "<|im_end|>", "\n", "{", "[]", "{}", "null"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=True) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
roles = st.sampled_from(
    ["system", "user", "assistant", "tool", "human", "gpt", "observation", "function_call", "x"]
)
functions = st.fixed_dictionaries(
    {}, optional={"name": texts | values, "arguments": values, "description": values, "parameters": values}
)
calls = functions | st.fixed_dictionaries({"function": functions}, optional={"id": values, "type": values})
messages = st.fixed_dictionaries(
    {},
    optional={
        "role": roles,
        "content": texts
        | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), max_size=2),
        "from": roles,
        "value": texts,
        "tool_calls": st.lists(calls, max_size=2) | values,
        "tool_call_id": values,
        "name": values,
        "weight": st.sampled_from([0, 1, None, "1", True]),
    },
)
turns = st.lists(st.tuples(texts, texts.filter(str.strip)), min_size=1, max_size=2).map(
    lambda pairs: [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
)
asked = texts.map(lambda text: [{"role": "user", "content": text}])
answered = texts.filter(str.strip).map(lambda text: [{"role": "assistant", "content": text}])
dialogs = st.builds(
    lambda before, question, answer: before + question + answer, st.just([]) | turns, asked, answered
)
likely: dict[str, st.SearchStrategy[Any]] = {
    "messages": dialogs,
    "conversations": dialogs,
    "prompt": texts | asked,
    "completion": texts | answered,
    "chosen": texts | answered | dialogs,
    "rejected": texts | answered | dialogs,
    "label": st.booleans(),
    "tools": st.sampled_from(["", None, []]),
    "history": st.lists(st.lists(texts, min_size=2, max_size=2), max_size=2),
}
columns = st.one_of(values, st.lists(messages, max_size=4), turns, st.lists(calls, max_size=2))


@st.composite
def rows(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    name = draw(st.sampled_from(sorted(FORMATS)))
    known = FORMATS[name]
    chosen = {
        column: st.one_of(*[likely.get(column, texts)] * 6, columns)
        for column in (*known.needed, *known.optional)
    }
    optional = {column: chosen.pop(column) for column in known.optional}
    return name, draw(st.fixed_dictionaries(chosen, optional=optional))


@pytest.mark.parametrize("name", ["chatml", "llama-3.1", "llama-3.3-meta"])
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    row=rows(),
    eos=st.sampled_from(["turn", "all", "last", "none"]),
    train_on=st.sampled_from(["assistant", "last", "all"]),
)
def test_any_row(
    prompt_format: Callable[[str], PromptFormat],
    name: str,
    row: tuple[str, dict[str, Any]],
    eos: Any,
    train_on: Any,
) -> None:
    known, (format_name, fields) = prompt_format(name), row
    kind = FORMATS[format_name].kinds[0]
    config = DataConfig(train="x", train_on=train_on, train_on_eos=eos)
    writer = Writer(kind, config, known.tokenizer, known.renderer)
    place = Row(fields, tuple(fields), "rows line 1")
    refused: TuneError | None = None
    try:
        (item,) = writer.items(parse_row(FORMATS[format_name], Source(path="rows"), place), place.where)
    except TuneError as error:
        refused = error
    event("refused" if refused else f"learnt from {format_name}")
    if refused:
        assert str(refused).startswith("rows line 1")
        return
    if isinstance(item, Rated):
        assert len(item) > 0
    elif kind == "dpo":
        pair = as_pair(item)
        start = int(pair.chosen.trained.argmax())
        if start == 1 and not known.tokenizer.adds_bos:
            return  # no prompt: the completion's own first token, which nothing predicts
        assert pair.chosen.tokens[:start].tolist() == pair.rejected.tokens[:start].tolist()
    else:
        assert len(as_example(item)) > 0
