"""`corral generate --input`: many prompts from a file, resumed where they were interrupted."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral import LLM, SamplingParams
from corral.cli.main import run
from corral.cli.prompt_file import PromptFile, PromptFileError
from corral.cli.result_file import ResultFile
from tests.checkpoints.writers import write_chat_model
from tests.peft_adapters import write_adapter
from tests.random_models import SMALL_CHAT, random_model

GREEDY = SamplingParams(temperature=0.0, max_tokens=6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small chat model as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("model")
    write_chat_model(folder)
    return folder


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def arguments(model: Path, source: Path, target: Path, *more: str) -> list[str]:
    files = ["--input", str(source), "--output", str(target)]
    settings = ["--temperature", "0", "--max-tokens", "6", "--dtype", "float32"]
    return ["generate", "--model", str(model), *files, *settings, *more]


def test_rows_come_out_in_order_as_they_do_one_by_one(model: Path, tmp_path: Path) -> None:
    dialog = [{"role": "user", "content": "hi"}]
    rows: list[dict[str, Any]] = [
        {"prompt": "hello world", "id": "first"},
        {"prompt_token_ids": [40, 50, 60], "id": None, "max_tokens": 20},
        {"messages": dialog, "max_tokens": 2, "logprobs": 1},
        *({"prompt": f"number {i}", "max_tokens": 1 + i % 5} for i in range(20)),
    ]
    source = write_rows(tmp_path / "in.jsonl", rows)
    source.write_text(source.read_text().replace("\n", "\n\n  \r\n", 1))  # blank lines are no rows
    assert run(arguments(model, source, tmp_path / "out.jsonl")) == 0
    results = read_rows(tmp_path / "out.jsonl")
    assert [row["index"] for row in results] == list(range(23))
    assert [row.get("id", "none") for row in results[:3]] == ["first", None, "none"]
    with LLM(str(model), dtype="float32") as llm:
        for row, result in zip(rows, results, strict=True):
            params = SamplingParams(temperature=0.0, max_tokens=row.get("max_tokens", 6))
            prompt = row.get("prompt", row.get("prompt_token_ids"))
            (alone,) = llm.chat(dialog, params) if prompt is None else llm.generate(prompt, params)
            (output,) = result["outputs"]
            assert output["text"] == alone.outputs[0].text
            assert output["token_ids"] == list(alone.outputs[0].token_ids)
            assert output["finish_reason"] == alone.outputs[0].finish_reason
            assert result["usage"]["completion_tokens"] == len(output["token_ids"])
    (scored,) = results[2]["outputs"]
    chosen = [
        at[str(token)]["logprob"] for token, at in zip(scored["token_ids"], scored["logprobs"], strict=True)
    ]
    assert scored["cumulative_logprob"] == pytest.approx(sum(chosen))
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_a_row_that_fails_is_told_and_the_others_go_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": "hello"},
        {"prompt_token_ids": [5, 999], "id": 7},
        {"prompt": "word " * 100},
        {"prompt": "hello", "structured_outputs": {"json": {"type": "no such type"}}},
        {"prompt": "x", "structured_outputs": {"choice": ["yes", "no"]}},
    ]
    out = tmp_path / "out.jsonl"
    assert run(arguments(model, write_rows(tmp_path / "in.jsonl", rows), out)) == 1
    results = read_rows(out)
    assert ["error" in row for row in results] == [False, True, True, True, False]
    assert results[1] == {
        "index": 1,
        "id": 7,
        "error": "the prompt holds token id 999, outside the vocabulary of 400",
    }
    assert "the context has room for" in results[2]["error"]
    assert results[4]["outputs"][0]["text"] in ("yes", "no")
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f'corral: 3 of 5 rows failed; their "error" in {out} says why'


BAD_LINES = {
    "{": "not valid JSON",
    '{"prompt": "x"} {}': "not valid JSON",
    "[1]": "a row must be an object, not a list",
    '"x"': "a row must be an object, not a text",
    '{"prompt": NaN}': "not valid JSON: NaN",
    '{"prompt": "\\ud800"}': "half of a surrogate pair",
    '{"prompt": ""}': "prompt is empty",
    '{"prompt": 5}': "prompt is a number; it must be a text",
    '{"prompt": "x", "prompt": "y"}': "'prompt' is given twice",
    '{"text": "x"}': "'text' is no field; there are prompt, prompt_token_ids, messages",
    '{"id": 1}': "the row has no prompt",
    '{"prompt": "x", "messages": []}': "the row has prompt and messages",
    '{"prompt": "x", "id": [1]}': "id is a list",
    '{"prompt": "x", "tools": []}': "tools go with messages",
    '{"prompt_token_ids": []}': "prompt_token_ids is empty",
    '{"prompt_token_ids": [1, 2.5]}': "prompt_token_ids: a token id is 2.5",
    '{"prompt_token_ids": [true]}': "a token id is True",
    '{"messages": [{"role": "wizard", "content": "x"}]}': "messages[0]: role is 'wizard'",
    '{"messages": [{"role": "user", "content": "x"}], "tools": [5]}': "tools must be a list of objects",
    '{"prompt": "x", "temperature": "hot"}': "temperature is 'hot'; it must be a number",
    '{"prompt": "x", "max_tokens": 0}': "max_tokens is 0",
    '{"prompt": "x", "n": 2}': "n is 2 with temperature 0",
    '{"prompt": "x", "logit_bias": {"a": 1}}': "logit_bias must map token ids",
    '{"prompt": "x", "structured_outputs": []}': "structured_outputs is a list",
    '{"prompt": "x", "structured_outputs": {"xml": ""}}': "structured_outputs.xml is no field",
    '{"prompt": "x", "structured_outputs": {"regex": 5}}': "structured_outputs.regex is a number",
    '{"prompt": "x", "structured_outputs": {"choice": [1]}}': "must be a list of texts",
    '{"prompt": "x", "structured_outputs": {"regex": "a", "choice": ["b"]}}': "exactly one",
    '{"prompt": "x", "structured_outputs": {"regex": "a"}, "ignore_eos": true}': "ignore_eos contradicts",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_named_before_any_work_starts(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(f'{{"prompt": "x"}}\n\n{line}\n')
    nowhere = tmp_path / "no-model"
    assert run(arguments(nowhere, source, tmp_path / "out.jsonl")) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"corral: {source} line 3: ")
    assert BAD_LINES[line] in error
    assert error.count("\n") == 1
    assert os.listdir(tmp_path) == ["in.jsonl"]


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "has no rows"), (b"\n \n", "has no rows"), (b"\xff{}\n", "line 1: not UTF-8")]
)
def test_a_file_without_rows_of_text_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(PromptFileError, match=said):
        PromptFile.check(tmp_path / "in.jsonl", GREEDY)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, said in (
        ("nowhere", "cannot be read: No such file"),
        ("pipe", "is not a file"),
        (".", "is not a"),
    ):
        with pytest.raises(PromptFileError, match=said):
            PromptFile.check(tmp_path / name, GREEDY)


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "x"}')
    prompts = PromptFile.check(tmp_path / "in.jsonl", GREEDY)
    assert [row.content for row in prompts.rows()] == [{"prompt": "x"}]


def test_what_is_there_is_not_overwritten_unasked(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", [{"prompt": "x"}]), tmp_path / "out.jsonl"
    out.write_text("mine")
    assert run(arguments(model, source, out)) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert run(arguments(model, source, source, "--overwrite")) == 1
    assert "need a file of their own" in capsys.readouterr().err
    assert run(arguments(model, source, out, "--overwrite")) == 0
    assert read_rows(out)[0]["index"] == 0


def test_a_run_that_cannot_begin_leaves_nothing(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"prompt": "x"}])
    assert run(arguments(tmp_path / "no-model", source, tmp_path / "out.jsonl")) == 1
    assert os.listdir(tmp_path) == ["in.jsonl"]


def listen_to_ctrl_c() -> None:
    """For a child: a shell's background jobs, and all that they start, are deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_run_goes_on_where_it_was(model: Path, tmp_path: Path, blow: signal.Signals) -> None:
    total = 80
    rows = [{"prompt_token_ids": [10 + i, 11], "max_tokens": 60} for i in range(total)]
    source, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    partial = tmp_path / "out.jsonl.partial"
    command = arguments(model, source, out, "--ignore-eos", "--max-num-seqs", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "corral", *command],
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
        preexec_fn=listen_to_ctrl_c,
    )
    deadline = time.monotonic() + 100
    while not partial.exists() or partial.read_bytes().count(b"\n") < 6:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(blow)
    said = process.communicate(timeout=60)[1]
    assert not out.exists()
    kept = [line for line in partial.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")][1:]
    assert 5 <= len(kept) < total
    if blow == signal.SIGINT:
        assert process.returncode == 130
        assert f"{len(kept)} of {total} rows are kept in {partial}" in said
    marked = b'{"index": 0, "kept": true}\n'  # shows that a finished row is not run again
    header = partial.read_bytes().splitlines(keepends=True)[0]
    partial.write_bytes(
        header + marked + b"".join(kept[1:]) + b'{"index": ' + str(len(kept)).encode() + b', "out'
    )
    assert run(command) == 0
    results = read_rows(out)
    assert results[0] == {"index": 0, "kept": True}
    assert [row["index"] for row in results] == list(range(total))
    assert out.read_bytes().splitlines(keepends=True)[1 : len(kept)] == kept[1:]
    assert os.listdir(tmp_path).count("out.jsonl.partial") == 0


CHANGES: dict[str, tuple[list[str], str]] = {
    "a flag": (["--top-k", "5"], "begun with top_k null and not 5"),
    "a flag that was there": (["--temperature", "0.5"], "begun with temperature 0.0 and not 0.5"),
    "a form": (["--choice", "a"], "begun with structured_outputs null and not"),
    "a type": (["--kv-cache-dtype", "int8"], 'begun with kv_cache_dtype "auto" and not "int8"'),
}


@pytest.mark.parametrize("change", [*CHANGES, "the input"])
def test_results_of_another_input_or_other_settings_are_not_resumed(
    change: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = (
        write_rows(tmp_path / "in.jsonl", [{"prompt": "x"}, {"prompt": "y"}]),
        tmp_path / "out.jsonl",
    )
    assert run(arguments(model, source, out)) == 0
    partial = interrupted_after(1, source, out, model)
    if change == "the input":
        write_rows(source, [{"prompt": "x"}, {"prompt": "z"}])
    more, said = CHANGES.get(change, ([], "begun with another input"))
    before = partial.read_bytes()
    assert run(arguments(model, source, out, *more)) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert said in error
    assert f"delete {partial}" in error
    assert partial.read_bytes() == before
    # How tokens are guessed, and how many rows run at once, changes nothing in the results.
    if change == "a flag":
        assert run(arguments(model, source, out, "--max-num-seqs", "2", "--speculate", "prompt-lookup")) == 0


def interrupted_after(count: int, source: Path, out: Path, model: Path) -> Path:
    """Turns a finished run into one that was interrupted: the rest of its rows is missing."""
    from corral.cli import options
    from corral.cli.generate import Job
    from corral.cli.generate_file import begun_with

    running = options.Running(dtype="float32")
    job = Job(str(model), {"max_tokens": 6, "temperature": 0.0}, running, None, {}, None)
    prompts = PromptFile.check(source, GREEDY)
    rows = read_rows(out)[:count]
    out.unlink()
    with ResultFile(out, begun_with(prompts, job.settings())) as results:
        for row in rows:
            results.add(row)
    return results.partial


def test_results_that_are_whole_need_no_model(model: Path, tmp_path: Path) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", [{"prompt": "x"}]), tmp_path / "out.jsonl"
    assert run(arguments(model, source, out)) == 0
    whole = out.read_bytes()
    interrupted_after(1, source, out, model)
    (model / "model.safetensors").rename(model / "hidden")
    try:
        assert run(arguments(model, source, out)) == 0
    finally:
        (model / "hidden").rename(model / "model.safetensors")
    assert out.read_bytes() == whole


def test_results_belong_to_one_process_at_a_time(tmp_path: Path) -> None:
    with ResultFile(tmp_path / "out", {}), pytest.raises(PromptFileError, match="another process"):
        ResultFile(tmp_path / "out", {})


@pytest.mark.parametrize("content", [b"my notes\n", b"my notes", b"{}\n", b'{"index": 0}\n'])
def test_a_file_of_someone_else_is_left_alone(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "out.partial").write_bytes(content)
    with pytest.raises(PromptFileError, match="move it out of the way"):
        ResultFile(tmp_path / "out", {})
    assert (tmp_path / "out.partial").read_bytes() == content


@given(cut=st.integers(0, 400), zeros=st.integers(0, 12))
def test_however_a_file_was_cut_off_its_whole_rows_are_kept(
    cut: int, zeros: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("cut") / "out"
    rows = [{"index": i, "id": "ü" * i} for i in range(8)]
    with ResultFile(out, {"model": "m"}) as results:
        for row in rows:
            results.add(row)
    whole = results.partial.read_bytes()
    left = whole[:cut]
    results.partial.write_bytes(left + (bytes(zeros) if b"\n" in left else b""))
    with ResultFile(out, {"model": "m"}) as results:
        assert results.num_rows == max(left.count(b"\n") - 1, 0)
        for row in rows[results.num_rows :]:
            results.add(row)
        results.finish()
    assert read_rows(out) == rows


def add_rows(path: Path, count: int, row: dict[str, Any]) -> None:
    with ResultFile(path, {}) as results:
        for index in range(count):
            results.add({"index": index, **row})


def test_a_full_disk_costs_no_row_that_was_finished(tmp_path: Path) -> None:
    path, row = tmp_path / "out.jsonl", {"outputs": ["x" * 100]}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(PromptFileError, match=r"cannot be written: File too large; \d rows are kept"):
            add_rows(path, 100, row)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with ResultFile(path, {}) as results:
        assert results.num_rows == 7
        results.add({"index": 7, **row})
        results.finish()
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == list(range(8))


@pytest.mark.parametrize("name", ["", ".", "..", "device"])
def test_results_go_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("device.partial").symlink_to("/dev/full")  # which can be read for ever
    with pytest.raises(PromptFileError, match=r"is a folder; give|device\.partial is not a file; move"):
        ResultFile(Path(name), {})


def test_an_adapter_changes_what_is_generated(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    adapter = tmp_path / "adapter"
    write_adapter(random_model(SMALL_CHAT), adapter)
    source = write_rows(tmp_path / "in.jsonl", [{"prompt": "hello"}])
    assert run(arguments(model, source, tmp_path / "plain.jsonl")) == 0
    assert run(arguments(model, source, tmp_path / "adapted.jsonl", "--adapter", str(adapter))) == 0
    plain, adapted = (read_rows(tmp_path / f"{name}.jsonl")[0] for name in ("plain", "adapted"))
    assert plain["outputs"] != adapted["outputs"]
    question = ["chat", str(model), "-p", "hello", "--temperature", "0", "--max-tokens", "6"]
    capsys.readouterr()
    assert run(question) == 0
    bare = capsys.readouterr().out
    assert run([*question, "--adapter", str(adapter)]) == 0
    assert capsys.readouterr().out != bare
