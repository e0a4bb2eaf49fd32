"""Formats of rows: TRL's, OpenAI's, ShareGPT's and Alpaca's, found by their columns or given."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from corral.text.messages import Message
from corral.tune.config import Source
from corral.tune.data.formats import FORMATS, find_format, parse_row
from corral.tune.data.parsed import Completion, Dialog, Parsed, Preference, Text
from corral.tune.data.prepare import Prepared
from corral.tune.data.rows import Row
from corral.tune.errors import TuneError
from corral.tune.examples import Example, Item, Pair, Rated
from tests.tune.data.conftest import PromptFormat
from tests.tune.data.items import as_example, as_pair, as_rated, text_of, trained_spans

Make = Callable[..., Prepared]

ASKED = {"role": "user", "content": "What color is the sky?"}
BLUE = {"role": "assistant", "content": "It is blue."}
GREEN = {"role": "assistant", "content": "It is green."}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "turn_on",
            "description": "Turns a light on.",
            "parameters": {
                "type": "object",
                "properties": {"room": {"type": "string"}},
                "required": ["room"],
            },
        },
    }
]
CALL = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "function": {"name": "turn_on", "arguments": {"room": "hall"}}}],
}
RESULT = {"role": "tool", "name": "turn_on", "content": "It is on."}


def parsed(fields: dict[str, Any], kind: str = "sft", **source: Any) -> Parsed:
    place = Source(path="rows.jsonl", **source)
    row = Row(fields, tuple(fields), "rows.jsonl line 1")
    return parse_row(find_format(place, row, kind), place, row)


def message(fields: dict[str, str]) -> Message:
    return Message(fields["role"], fields["content"])  # type: ignore[arg-type]


U, B, G = message(ASKED), message(BLUE), message(GREEN)

# The rows of TRL's overview of data set formats, with what they mean.
TRL: list[tuple[str, dict[str, Any], Parsed]] = [
    ("sft", {"text": "The sky is blue."}, Text("The sky is blue.")),
    ("sft", {"messages": [ASKED, BLUE]}, Dialog((U, B))),
    ("sft", {"prompt": "The sky is", "completion": " blue."}, Completion("The sky is", " blue.")),
    ("sft", {"prompt": [ASKED], "completion": [BLUE]}, Completion((U,), (B,))),
    (
        "dpo",
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        Preference("The sky is", " blue.", " green."),
    ),
    (
        "dpo",
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        Preference("The sky is", " blue.", " green."),
    ),
    ("dpo", {"prompt": [ASKED], "chosen": [BLUE], "rejected": [GREEN]}, Preference((U,), (B,), (G,))),
    ("dpo", {"chosen": [ASKED, BLUE], "rejected": [ASKED, GREEN]}, Preference((U,), (B,), (G,))),
    (
        "kto",
        {"prompt": "The sky is", "completion": " blue.", "label": True},
        Completion("The sky is", " blue.", (), True),
    ),
    (
        "kto",
        {"prompt": [ASKED], "completion": [GREEN], "label": False},
        Completion((U,), (G,), (), False),
    ),
    # As in ultrafeedback_binarized: the prompt stands in both dialogs, and once more as a text.
    (
        "dpo",
        {"prompt": ASKED["content"], "chosen": [ASKED, BLUE], "rejected": [ASKED, GREEN]},
        Preference((U,), (B,), (G,)),
    ),
]


@pytest.mark.parametrize(("kind", "row", "meaning"), TRL)
def test_rows_of_trl(kind: str, row: dict[str, Any], meaning: Parsed) -> None:
    assert parsed(row, kind) == meaning


@pytest.mark.parametrize("row", [row for kind, row, _ in TRL if kind == "dpo" and "prompt" not in row])
def test_implicit_prompts_are_those_of_trl(row: dict[str, Any]) -> None:
    data_utils = pytest.importorskip("trl.data_utils")
    theirs = data_utils.extract_prompt(row)
    assert parsed(row, "dpo") == parsed(theirs, "dpo")


def test_words_are_not_cut_to_find_a_prompt() -> None:
    row = {"chosen": "The sky  is blue and wide.", "rejected": "The sky  is black."}
    assert parsed(row, "dpo") == Preference("The sky  is", " blue and wide.", " black.")
    row = {"chosen": "The sky", "rejected": "The sky is blue."}
    assert parsed(row, "dpo") == Preference("The", " sky", " sky is blue.")


def test_dialogs_with_tools(made_of: Make, chatml: PromptFormat) -> None:
    row = {"messages": [ASKED, CALL, RESULT, BLUE], "tools": TOOLS}
    found = parsed(row)
    assert isinstance(found, Dialog)
    assert [m.role for m in found.messages] == ["user", "assistant", "tool", "assistant"]
    assert found.messages[1].tool_calls[0].arguments == {"room": "hall"}
    assert parsed({**row, "tools": json.dumps(TOOLS)}) == found  # as data sets store it
    example = as_example(made_of([row]).train[0])
    assert "Turns a light on." in text_of(example, chatml.tokenizer)
    assert len(trained_spans(example, chatml.tokenizer)) == 2


def test_calls_without_an_id_are_the_same_each_time() -> None:
    assert parsed({"messages": [ASKED, CALL, RESULT, BLUE]}) == parsed(
        {"messages": [ASKED, CALL, RESULT, BLUE]}
    )


def test_messages_of_openai() -> None:
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "What "}, {"type": "text", "text": "now?"}],
            },
            {
                "role": "assistant",
                "content": None,
                "weight": 0,
                "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"n": 1}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "a", "content": "2"},
            {"role": "assistant", "content": "2", "weight": 1},
        ]
    }
    found = parsed(row)
    assert isinstance(found, Dialog)
    assert found.messages[0] == Message("system", "Be brief.")
    assert found.messages[1].content == "What now?"
    assert found.messages[2].tool_calls[0].arguments == {"n": 1}
    assert found.untrained == frozenset({2})


def test_rows_of_sharegpt() -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "Light, please."},
            {"from": "function_call", "value": '{"name": "turn_on", "arguments": {"room": "hall"}}'},
            {"from": "observation", "value": "on"},
            {"from": "gpt", "value": "It is on."},
            {"from": "human", "value": "Thanks."},
            {"from": "gpt", "value": "Bye."},
        ],
        "system": "Obey.",
        "tools": "[]",
    }
    found = parsed(row)
    assert isinstance(found, Dialog)
    said = [(m.role, m.content) for m in found.messages]
    assert said == [
        ("system", "Obey."),
        ("user", "Light, please."),
        ("assistant", ""),
        ("tool", "on"),
        ("assistant", "It is on."),
        ("user", "Thanks."),
        ("assistant", "Bye."),
    ]
    (call,) = found.messages[2].tool_calls
    assert (call.name, call.arguments) == ("turn_on", {"room": "hall"})
    usual = {"conversations": [ASKED, BLUE]}  # the same column with the usual keys
    assert parsed(usual) == Dialog((U, B))


def test_rows_of_alpaca() -> None:
    row = {
        "instruction": "Add.",
        "input": "2 and 3",
        "output": "5",
        "system": "You calculate.",
        "history": [["Hi", "Hello"]],
    }
    assert parsed(row) == Dialog(
        (
            Message("system", "You calculate."),
            Message("user", "Hi"),
            Message("assistant", "Hello"),
            Message("user", "Add.\n2 and 3"),
            Message("assistant", "5"),
        )
    )
    assert parsed({"instruction": "Sing.", "input": "", "output": "La.", "text": "Below ..."}) == Dialog(
        (Message("user", "Sing."), Message("assistant", "La."))
    )


def test_columns_by_other_names() -> None:
    row = {"dialog": [ASKED, BLUE], "functions": TOOLS, "id": 7}
    found = parsed(row, columns={"messages": "dialog", "tools": "functions"})
    assert isinstance(found, Dialog)
    assert found.messages == (U, B)
    assert len(found.tools) == 1
    swapped = {"chosen": [ASKED, GREEN], "rejected": [ASKED, BLUE]}
    assert parsed(swapped, "dpo", columns={"chosen": "rejected", "rejected": "chosen"}) == Preference(
        (U,), (B,), (G,)
    )
    question = {"question": "Why?", "answer": "So.", "id": 1}
    mapped = parsed(question, columns={"instruction": "question", "output": "answer"})
    assert mapped == Dialog((Message("user", "Why?"), Message("assistant", "So.")))


def test_the_objective_decides_between_formats_that_fit() -> None:
    row = {
        "prompt": "x",
        "messages": [ASKED, BLUE],
        "chosen": [ASKED, BLUE],
        "rejected": [ASKED, GREEN],
        "text": "y",
    }
    assert isinstance(parsed(row, "dpo"), Preference)
    assert isinstance(parsed(row, "sft"), Dialog)
    assert isinstance(parsed(row, "pretrain"), Text)
    assert isinstance(parsed(row, "sft", format="text"), Text)


def test_a_text_beside_messages_is_a_message() -> None:
    assert parsed({"prompt": ASKED["content"], "completion": [BLUE]}) == Completion((U,), (B,))
    assert parsed({"prompt": [ASKED], "completion": BLUE["content"]}) == Completion((U,), (B,))
    assert parsed({"prompt": ASKED["content"], "chosen": BLUE, "rejected": GREEN}, "dpo") == Preference(
        (U,), (B,), (G,)
    )


def test_every_format_gives_items_for_its_objectives(made_of: Make) -> None:
    rows: dict[str, dict[str, Any]] = {
        "messages": {"messages": [ASKED, BLUE]},
        "prompt_completion": {"prompt": [ASKED], "completion": [BLUE]},
        "text": {"text": "The sky is blue."},
        "preference": {"chosen": [ASKED, BLUE], "rejected": [ASKED, GREEN]},
        "rated": {"prompt": [ASKED], "completion": [BLUE], "label": True},
        "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        "alpaca": {"instruction": "a", "output": "b"},
    }
    assert set(rows) == set(FORMATS)
    readers: dict[str, Callable[[Item], Example | Pair | Rated]] = {
        "dpo": as_pair,
        "orpo": as_pair,
        "reward": as_pair,
        "kto": as_rated,
    }
    for name, row in rows.items():
        for kind in FORMATS[name].kinds:
            prepared = made_of([row], kind)
            assert prepared.report.sources[0].format == name
            read = readers.get(kind, as_example)
            assert len(read(prepared.train[0])) == prepared.train.lengths[0]


def test_an_objective_refuses_rows_that_it_cannot_learn_from() -> None:
    with pytest.raises(
        TuneError, match="line 1 is in the format messages, but dpo trains on rows of preference"
    ):
        parsed({"messages": [ASKED, BLUE]}, "dpo")
    with pytest.raises(
        TuneError, match="line 1 is in the format preference, but sft trains on rows of messages or"
    ):
        parsed({"chosen": "a b", "rejected": "a c"}, "sft")
    with pytest.raises(TuneError, match="format text, but kto trains on rows of preference or rated"):
        parsed({"text": "a"}, "kto", format="text")
