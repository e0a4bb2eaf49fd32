"""Windows of text that models are calibrated on, and what they write themselves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.errors import RequestError
from corral.evals.texts import Row
from corral.model.config import LlamaConfig
from corral.quantizer.calibration import (
    CalibrationOptions,
    calibration_windows,
    fingerprint,
    held_out_windows,
    own_samples,
)
from corral.quantizer.errors import QuantizeError
from corral.text.prompt_format import choose_renderer
from corral.text.rendered import Renderer
from corral.text.tokenizer import Tokenizer
from tests.checkpoints.writers import CHATML, write_chat_model
from tests.evals.models import ids_of, write_model

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "and", "hello", "world", "0123")
END, BOS = 0, 1  # <|endoftext|> of the byte-level tokenizer, <s> of the SentencePiece one
LLAMA_END, LLAMA_BOS = 128001, 128000
DIALOG = [{"role": "user", "content": "hello world"}, {"role": "assistant", "content": "the fox"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose texts begin with no token of their own."""
    return write_model(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose texts begin with <s>."""
    return write_model(tmp_path_factory.mktemp("bos") / "model", with_bos=True)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    """Byte-level, with <|endoftext|> and no begin-of-text token."""
    return Tokenizer.from_hf(folder)


@pytest.fixture(scope="module")
def renderer(tokenizer: Tokenizer) -> Renderer:
    """ChatML."""
    return choose_renderer(tokenizer, chat_template=CHATML, family=None)


def text_of(words: int, start: int = 0) -> str:
    return " ".join(f"{WORDS[i % len(WORDS)]}{i}" for i in range(start, start + words))


def joined(windows: Sequence[Sequence[int]], start: int = 0) -> list[int]:
    return [token for window in windows for token in window[start:]]


def test_a_long_text_is_cut_into_windows_that_do_not_overlap(folder: Path, tokenizer: Tokenizer) -> None:
    text = text_of(400)
    ids = [*ids_of(folder, text), END]
    windows = calibration_windows([text], tokenizer, CalibrationOptions(len(ids) // 32, 32))
    assert joined(windows) == ids[: len(ids) // 32 * 32]


def test_short_texts_are_joined_with_the_end_of_text_between(folder: Path, tokenizer: Tokenizer) -> None:
    texts = ["the fox", "", "hello", "a dog!"] * 20
    ids = [token for text in texts if text for token in (*ids_of(folder, text), END)]
    count = len(ids) // 16
    assert joined(calibration_windows(texts, tokenizer, CalibrationOptions(count, 16))) == ids[: count * 16]


def test_each_window_and_each_text_begin_with_the_token_that_begins_texts(
    llama3_tokenizer: Tokenizer,
) -> None:
    texts = [text_of(5), text_of(40), "fox"] * 3
    windows = held_out_windows(texts, llama3_tokenizer, CalibrationOptions(12, 16), 1000)
    assert len(windows) > 12
    assert all(window[0] == LLAMA_BOS and len(window) == 16 for window in windows)
    wanted = [(*llama3_tokenizer.encode(text), LLAMA_END) for text in texts]
    found: list[list[int]] = [[]]
    for token in joined(windows, start=1):
        if token != LLAMA_BOS:
            found[-1].append(token)
        if token == LLAMA_END:
            found.append([])
    assert [tuple(ids) for ids in found[:-1]] == wanted[: len(found) - 1]
    after = [(a, b) for window in windows for a, b in pairwise(window)]
    assert {b for a, b in after if a == LLAMA_END} == {LLAMA_BOS}
    assert all(a == LLAMA_END for a, b in after if b == LLAMA_BOS)


def test_names_of_control_tokens_in_a_text_are_ordinary_text(tokenizer: Tokenizer) -> None:
    windows = calibration_windows(["<|im_end|>" * 20], tokenizer, CalibrationOptions(2, 16))
    assert tokenizer.control_id("<|im_end|>") not in joined(windows)


def test_dialogs_are_rendered_as_the_model_reads_them(tokenizer: Tokenizer, renderer: Renderer) -> None:
    text = "<|im_start|>user\nhello world<|im_end|>\n<|im_start|>assistant\nthe fox<|im_end|>\n"
    ids = tokenizer.encode_prompt_text(text)
    windows = calibration_windows([DIALOG] * 3, tokenizer, CalibrationOptions(3, len(ids)), renderer)
    assert windows == [ids] * 3


def test_a_rendered_dialog_has_its_begin_of_text_token_once(llama3_tokenizer: Tokenizer) -> None:
    llama = choose_renderer(llama3_tokenizer, chat_template=None, family="llama-3.1")
    (window, *_) = calibration_windows([DIALOG] * 9, llama3_tokenizer, CalibrationOptions(1, 200), llama)
    header = llama3_tokenizer.control_id("<|start_header_id|>")
    assert window[:2] == [LLAMA_BOS, header]
    assert all(b == header for a, b in pairwise(window) if a == LLAMA_BOS)
    assert window.count(LLAMA_BOS) > 1


def test_windows_are_taken_from_all_over_the_text(folder: Path, tokenizer: Tokenizer) -> None:
    text = text_of(400)
    ids = ids_of(folder, text)
    windows = calibration_windows([text], tokenizer, CalibrationOptions(4, 32))
    starts = [i // 32 for i in range(0, len(ids), 32) if ids[i : i + 32] in windows]
    count = (len(ids) + 1) // 32
    assert starts == [0, count // 4, 2 * count // 4, 3 * count // 4]


def test_a_much_longer_source_is_thinned_evenly(tokenizer: Tokenizer) -> None:
    options = CalibrationOptions(4, 16)
    long = text_of(200_000)
    several = [text_of(20, start=20 * i) for i in range(10_000)]
    for rows in ([long], several):
        encoded = 0

        class Counted(Tokenizer):
            def encode(self, text: str, *, first: bool = False) -> list[int]:
                nonlocal encoded
                encoded += len(text)
                return tokenizer.encode(text, first=first)

        windows = calibration_windows(rows, Counted(tokenizer._vocabulary, []), options)
        assert encoded < 0.1 * len(long)
        whole = " ".join(rows)
        at = [whole.index(tokenizer.decode(window).strip()) / len(whole) for window in windows]
        assert at == pytest.approx([0, 0.25, 0.5, 0.75], abs=0.05)


def test_windows_that_are_held_out_are_others(tokenizer: Tokenizer) -> None:
    rows, options = [text_of(900)], CalibrationOptions(10, 32)
    taken = calibration_windows(rows, tokenizer, options)
    held_out = held_out_windows(rows, tokenizer, options, 7, taken=taken)
    assert len(held_out) == 7
    assert all(len(window) == 32 and window not in taken for window in held_out)
    rest = held_out_windows(rows, tokenizer, options, 10_000, taken=taken)
    everything = held_out_windows(rows, tokenizer, options, 10_000)
    assert sorted(rest + taken) == sorted(everything)
    assert len({tuple(window) for window in everything}) == len(everything)


def test_nothing_may_be_left_to_hold_out(tokenizer: Tokenizer) -> None:
    rows, options = ["the fox " * 50], CalibrationOptions(1, 32)
    taken = held_out_windows(rows, tokenizer, options, 10_000)
    assert taken
    assert held_out_windows(rows, tokenizer, options, 5, taken=taken) == []
    assert held_out_windows(["fox"], tokenizer, options, 5) == []


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    length=st.integers(2, 24),
    starts=st.booleans(),
)
def test_no_token_is_lost_or_doubled(
    llama3_tokenizer: Tokenizer, lengths: list[int], length: int, starts: bool
) -> None:
    plain = Tokenizer(llama3_tokenizer._vocabulary, [])
    tokenizer = llama3_tokenizer if starts else plain
    rows = [text_of(count, start=1000 * i) for i, count in enumerate(lengths)]
    end = [LLAMA_END] if starts else []
    wanted = [token for row in rows if row for token in (*tokenizer.encode(row), *end)]
    options = CalibrationOptions(10_000, length)  # more than there are, so that nothing is thinned
    windows = held_out_windows(rows, tokenizer, options, 10_000)
    assert all(len(window) == length for window in windows)
    found = [token for token in joined(windows) if token != LLAMA_BOS]
    assert found == wanted[: len(found)]
    assert len(wanted) - len(found) < length


def test_a_text_that_is_too_short_says_how_much_there_is(tokenizer: Tokenizer) -> None:
    with pytest.raises(QuantizeError) as caught:
        calibration_windows(["the fox " * 60], tokenizer, CalibrationOptions(128, 64))
    said = r"gives 1 windows of 64 tokens, and samples is 128"
    assert said in str(caught.value)


def test_a_dialog_that_cannot_be_rendered_is_refused_by_row(tokenizer: Tokenizer, renderer: Renderer) -> None:
    options = CalibrationOptions(1, 8)
    rows: list[Row] = ["a text", [{"role": "nobody", "content": "hi"}]]
    with pytest.raises(
        QuantizeError, match=r"row 2 of the calibration text holds messages, and the model has no"
    ):
        calibration_windows(rows, tokenizer, options)
    with pytest.raises(
        QuantizeError, match=r"row 2 of the calibration text: messages\[0\]: role is 'nobody'"
    ):
        calibration_windows(rows, tokenizer, options, renderer)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"samples": 0}, "samples is 0"),
        ({"samples": 1.5}, "samples is 1.5; it must be a whole number"),
        ({"length": 1}, "length is 1; it must be at least 2"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
    ],
)
def test_options_out_of_range_are_refused_by_name(fields: dict[str, int], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        CalibrationOptions(**fields)
    assert said in str(caught.value)


def test_windows_longer_than_the_context_are_refused(llama31_config: LlamaConfig) -> None:
    longest = llama31_config.max_position_embeddings
    CalibrationOptions(length=longest).check(llama31_config)
    with pytest.raises(RequestError, match="length is 131,073, but the model's context is 131,072 tokens"):
        CalibrationOptions(length=longest + 1).check(llama31_config)


def test_a_fingerprint_tells_windows_apart() -> None:
    windows = [[1, 2, 3], [4, 5]]
    same = fingerprint([(1, 2, 3), (4, 5)])
    others = (
        [[1, 2], [3, 4, 5]],
        [[1, 2, 3]],
        [[4, 5], [1, 2, 3]],
        [[1, 2, 3], [4, 6]],
        [[1, 2, 3], [4, 5], []],
    )
    assert fingerprint(windows) == same
    assert len({same, *map(fingerprint, others)}) == 1 + len(others)


def test_a_model_writes_samples_of_its_own(with_bos: Path) -> None:
    options, told = CalibrationOptions(70, 12, seed=3), list[tuple[int, int]]()  # more than run at once
    samples = own_samples(str(with_bos), options, progress=lambda done, total: told.append((done, total)))
    assert [len(sample) for sample in samples] == [12] * 70
    assert all(sample[0] == BOS for sample in samples)
    assert len({tuple(sample) for sample in samples}) == 70
    assert told[-1] == (770, 770)
    assert told == sorted(told)


def test_own_samples_depend_on_the_seed_alone(tmp_path: Path) -> None:
    write_chat_model(tmp_path)
    first, again, other = (
        own_samples(str(tmp_path), CalibrationOptions(5, 48, seed), threads=threads)
        for seed, threads in ((7, 1), (7, 2), (8, 1))
    )
    assert first == again
    assert not {tuple(sample) for sample in first} & {tuple(sample) for sample in other}
    fewer = own_samples(str(tmp_path), CalibrationOptions(2, 48, 7))
    assert fewer == first[:2]
    eos = Tokenizer.from_hf(tmp_path).control_id("<|im_end|>")
    assert any(eos in sample[:-1] for sample in first)  # they go on after the end of a message


def test_samples_longer_than_the_context_are_refused(tmp_path: Path) -> None:
    write_chat_model(tmp_path)
    with pytest.raises(RequestError, match="max_model_len"):
        own_samples(str(tmp_path), CalibrationOptions(1, 65))
