"""Rows that cannot be trained on are refused with their file, their number and the key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corral.tune.config import DataConfig
from corral.tune.data.prepare import Prepared, prepare
from corral.tune.errors import TuneError
from tests.tune.data.conftest import PromptFormat

ASKED = {"role": "user", "content": "Why?"}
SAID = {"role": "assistant", "content": "So."}
GOOD: dict[str, Any] = {
    "messages": {"messages": [ASKED, SAID]},
    "prompt_completion": {"prompt": "a", "completion": "b"},
    "text": {"text": "a"},
    "preference": {"prompt": [ASKED], "chosen": [SAID], "rejected": [SAID]},
    "rated": {"prompt": "a", "completion": "b", "label": True},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "alpaca": {"instruction": "a", "output": "b"},
}
KINDS = {"preference": "dpo", "rated": "kto"}

# Format, what is wrong about the second row, and what the sentence says behind its number.
BAD: list[tuple[str, dict[str, Any], str]] = [
    # Columns.
    ("messages", {}, " has no column 'messages', which the format messages needs; its columns are: none"),
    (
        "messages",
        {"mesages": [ASKED, SAID], "id": 1},
        " has no column 'messages', which the format messages needs; its columns are: mesages, id. "
        "Did you mean 'mesages'?",
    ),
    ("messages", {"messages": None}, ": messages is empty; leave the row out"),
    ("rated", {"prompt": "a", "completion": "b"}, " has no column 'label'"),
    # Types.
    ("messages", {"messages": "hi"}, ": messages must be a list of messages, not text"),
    ("messages", {"messages": {"role": "user"}}, ": messages must be a list of messages, not an object"),
    ("messages", {"messages": []}, ": messages is empty; a dialog has messages"),
    ("messages", {"messages": ["hi"]}, ": messages[0] must be an object with role and content, not text"),
    ("messages", {"messages": [{"content": "a"}]}, ": messages[0] has no role; its keys are: content"),
    (
        "messages",
        {"messages": [{"role": "bot", "content": "a"}]},
        ": messages[0] has role 'bot'; it must be one of system, user, assistant, tool",
    ),
    ("messages", {"messages": [{"role": "user"}, SAID]}, ": messages[0] has no content; its keys are: role"),
    (
        "messages",
        {"messages": [{"role": "user", "content": 5}, SAID]},
        ": messages[0]: content of a user message",
    ),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, SAID]},
        ": messages[0]: content part of type 'image_url': only text parts are supported",
    ),
    (
        "messages",
        {"messages": [ASKED, {**SAID, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        ": messages[1]: tool_calls[0].arguments is not valid JSON",
    ),
    (
        "messages",
        {"messages": [ASKED, {**SAID, "weight": 2}]},
        ": messages[1].weight is 2; it must be 0 or 1",
    ),
    (
        "messages",
        {"messages": [{**ASKED, "weight": 0}, SAID]},
        ": messages[0].weight belongs to an assistant message",
    ),
    ("messages", {"messages": [ASKED, SAID], "tools": "{"}, ": tools is not valid JSON"),
    (
        "messages",
        {"messages": [ASKED, SAID], "tools": {"a": 1}},
        ": tools must be a list of tools, not an object",
    ),
    (
        "messages",
        {"messages": [ASKED, SAID], "tools": [1]},
        ": tools[0] must be an object that describes a tool",
    ),
    ("messages", {"messages": [ASKED, SAID], "tools": [{"name": ""}]}, ": tools[0]"),
    ("text", {"text": 5}, ": text must be text, not int"),
    ("text", {"text": "  \n"}, ": text is empty; leave the row out"),
    (
        "prompt_completion",
        {"prompt": 5, "completion": "b"},
        ": prompt must be text or a list of messages, not int",
    ),
    (
        "prompt_completion",
        {"prompt": "a", "completion": ""},
        ": completion is empty, so there is nothing to learn",
    ),
    (
        "rated",
        {"prompt": "a", "completion": "b", "label": "good"},
        ": label must be true or false, not 'good'",
    ),
    ("rated", {"prompt": "a", "completion": "b", "label": 1}, ": label must be true or false, not 1"),
    ("alpaca", {"instruction": "a", "output": ["b"]}, ": output must be text, not list"),
    ("alpaca", {"instruction": "a", "output": " "}, ": output is empty; leave the row out"),
    ("alpaca", {"instruction": "a", "output": "b", "history": [["a"]]}, ": history must be a list of pairs"),
    # Order.
    (
        "messages",
        {"messages": [ASKED, ASKED, SAID]},
        ": messages[1] has role 'user' after one of role 'user'; an assistant message belongs between",
    ),
    (
        "messages",
        {"messages": [ASKED, SAID, SAID]},
        ": messages[2] has role 'assistant' after one of role 'assistant'; a user message or a tool's result",
    ),
    ("messages", {"messages": [SAID, ASKED]}, ": messages[0] has role 'assistant' at the beginning"),
    (
        "messages",
        {"messages": [ASKED, SAID, {"role": "system", "content": "x"}]},
        ": messages[2] has role 'system' after one of role 'assistant'; a system message can only be the",
    ),
    (
        "messages",
        {"messages": [ASKED, {"role": "tool", "content": "x"}, SAID]},
        ": messages[1] has role 'tool' after one of role 'user'; a tool's result follows the assistant",
    ),
    ("messages", {"messages": [ASKED]}, ": messages has no assistant message, so there is nothing to learn"),
    (
        "messages",
        {"messages": [ASKED, {"role": "assistant", "content": " "}]},
        ": messages[1] is an assistant message that says nothing",
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "cat", "value": "a"}]},
        ": conversations[0] has role 'cat'; it must",
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "f(x)"}]},
        ": conversations[1], a call of a tool, is not valid JSON",
    ),
    (
        "sharegpt",
        {
            "conversations": [{"from": "system", "value": "a"}, *GOOD["sharegpt"]["conversations"]],
            "system": "b",
        },
        " has a system column and a system message",
    ),
    # Prompts and completions.
    (
        "prompt_completion",
        {"prompt": [ASKED, SAID], "completion": [SAID]},
        ": prompt ends with an assistant message; that belongs to the completion",
    ),
    (
        "prompt_completion",
        {"prompt": [ASKED], "completion": [ASKED]},
        ": completion must begin with an assistant message, not with one of role 'user'",
    ),
    (
        "preference",
        {"prompt": [ASKED], "chosen": [SAID], "rejected": "b"},
        ": chosen and rejected must both be text",
    ),
    (
        "preference",
        {"prompt": [ASKED], "chosen": [SAID], "rejected": 5},
        ": rejected must be text or a list of",
    ),
    (
        "preference",
        {"chosen": [ASKED, SAID], "rejected": [{**ASKED, "content": "Who?"}, SAID]},
        ": chosen and rejected have no message in common at the beginning; give a prompt column",
    ),
    (
        "preference",
        {"chosen": [ASKED, SAID], "rejected": [ASKED, SAID, ASKED, SAID]},
        ": chosen is only the beginning of the other",
    ),
    (
        "preference",
        {"chosen": [ASKED, SAID, ASKED, SAID], "rejected": [ASKED, SAID, {**ASKED, "content": "?"}, SAID]},
        ": chosen[2], the first message that is not in both, has role 'user'",
    ),
]


@pytest.mark.parametrize(("name", "row", "said"), BAD, ids=[said[:60] for _, _, said in BAD])
def test_a_bad_row_is_refused(
    name: str,
    row: dict[str, Any],
    said: str,
    write_rows: Callable[..., str],
    chatml: PromptFormat,
    tmp_path: Path,
) -> None:
    path = write_rows([GOOD[name], row])
    cache, kind = tmp_path / "cache", KINDS.get(name, "sft")
    with pytest.raises(TuneError) as refused:
        prepare(
            DataConfig.model_validate({"train": {"path": path, "format": name}}),
            kind,
            chatml.tokenizer,
            chatml.renderer,
            8192,
            cache,
        )
    assert str(refused.value).startswith(f"{path} line 2{said}")
    assert [file.name for file in cache.iterdir() if not file.name.endswith(".lock")] == []


def refusal(made_of: Callable[..., Prepared], rows: list[Any], kind: str = "sft", **settings: Any) -> str:
    with pytest.raises(TuneError) as refused:
        made_of(rows, kind, **settings)
    return str(refused.value)


def test_columns_that_fit_no_format_are_named_with_the_nearest(made_of: Callable[..., Prepared]) -> None:
    said = refusal(made_of, [{"mesages": [ASKED, SAID], "id": 3}])
    assert "line 1 fits no format; its columns are: mesages, id; wanted are 'messages'; or" in said
    assert said.endswith("Is 'mesages' the column 'messages'? Then set columns to {messages: mesages}")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"messagse": "dialog"},
            "columns has the key 'messagse', which no format has a column for. Did you mean",
        ),
        (
            {"messages": "dialogue"},
            "has no column 'dialogue', which columns names for 'messages'; its columns are: dialog. "
            "Did you mean 'dialog'?",
        ),
    ],
)
def test_a_column_map_must_fit(
    columns: dict[str, str], said: str, write_rows: Callable[..., str], chatml: PromptFormat, tmp_path: Path
) -> None:
    source = {"path": write_rows([{"dialog": [ASKED, SAID]}]), "columns": columns}
    config = DataConfig.model_validate({"train": source})
    with pytest.raises(TuneError) as refused:
        prepare(config, "sft", chatml.tokenizer, chatml.renderer, 8192, tmp_path)
    assert said in str(refused.value)


def test_a_row_that_is_longer_than_allowed_can_be_refused(made_of: Callable[..., Prepared]) -> None:
    long = {"text": "word " * 100}
    said = refusal(made_of, [{"text": "a b c"}, long], max_length=64, overlong="error")
    assert "line 2 has 102 tokens, and max_length is 64; raise it, or set overlong" in said


def test_a_length_beyond_the_context_is_refused(made_of: Callable[..., Prepared]) -> None:
    assert refusal(made_of, [GOOD["text"]], max_length=9000) == (
        "max_length is 9,000, but the model's context is 8,192 tokens"
    )


def test_data_in_which_nothing_is_trained_is_refused(made_of: Callable[..., Prepared]) -> None:
    row = {"messages": [{"role": "user", "content": "word " * 100}, SAID]}
    assert refusal(made_of, [row] * 3, max_length=32).endswith(
        "are left out, because nothing to learn is in their first 32 tokens (3)"
    )
    assert "because they are longer than 32 tokens (3)" in refusal(
        made_of, [row] * 3, max_length=32, overlong="drop"
    )
    same = {"prompt": "a", "chosen": "b", "rejected": "b"}
    assert "because both completions are the same (1)" in refusal(made_of, [same], "dpo")
    untrained = {"messages": [ASKED, {**SAID, "weight": 0}]}
    assert "because none of their tokens would be trained (1)" in refusal(made_of, [untrained])


def test_data_without_rows_is_refused(made_of: Callable[..., Prepared]) -> None:
    assert refusal(made_of, []).endswith("rows.jsonl has no rows; give some to train on")


def test_dialogs_need_a_prompt_format(
    write_rows: Callable[..., str], chatml: PromptFormat, tmp_path: Path
) -> None:
    config = DataConfig(train=write_rows([GOOD["messages"]]))
    with pytest.raises(
        TuneError, match=r"line 1: the row is a dialog, but the model has no prompt format of its own"
    ):
        prepare(config, "sft", chatml.tokenizer, None, 8192, tmp_path)


def test_ratings_of_several_messages_are_refused(made_of: Callable[..., Prepared]) -> None:
    row = {"prompt": [ASKED], "completion": [SAID, ASKED, SAID], "label": True}
    assert refusal(made_of, [row], "kto").endswith("a completion that is rated must be one assistant message")


def test_held_out_rows_are_given_in_one_way(made_of: Callable[..., Prepared]) -> None:
    said = refusal(made_of, [GOOD["text"]], eval="x", eval_fraction=0.1)
    assert said == "eval and eval_fraction are both given; leave one of them out"
