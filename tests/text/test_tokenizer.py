"""Tokenizers from all three sources, against those who defined the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as OracleTokenizer

from corral.checkpoints.gguf_file import GgufFile
from corral.errors import TokenizerError
from corral.text.control_tokens import control_names
from corral.text.families import FAMILIES
from corral.text.tokenizer import Tokenizer, check_fits
from tests.text.vocabularies import chatml_tokenizer_json, sentencepiece_json

UNICODE = st.text(st.characters(codec="utf-8"), max_size=80)
FRAGMENTS = st.sampled_from(
    [
        "<|",
        "|>",
        "<|eot_id|>",
        "<|im_end|>",
        "<s>",
        "</s>",
        "im_end",
        "\n\n",
        " ",
        "  ",
        "'s",
        "123456",
        "é",
        "🦙",
    ]
)
MIXED = st.lists(st.one_of(UNICODE, FRAGMENTS), max_size=8).map("".join)


@pytest.fixture(scope="module")
def reference() -> Any:
    """Meta's own tokenizer."""
    from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer

    return MetaTokenizer.get_instance()


@pytest.fixture(scope="module")
def llama3_json(llama3_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Meta's ranks, written as a tokenizer.json."""
    folder = tmp_path_factory.mktemp("llama3")
    (folder / "tokenizer.json").write_text(llama3_tokenizer.to_json(), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    return Tokenizer.from_gguf(GgufFile(smollm2_path).metadata)


@given(MIXED)
def test_ids_equal_metas_tokenizer(llama3_tokenizer: Tokenizer, reference: Any, text: str) -> None:
    ids = llama3_tokenizer.encode(text)
    assert ids == reference.encode(text, bos=False, eos=False)
    assert llama3_tokenizer.decode(ids) == reference.decode(ids) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "This is a test sentence.",
        "a" * 25_000,
        "a" * 25_001,
        " " * 60_000 + "b" * 30_000 + " c",
        "x y" * 140_000,  # longer than the 400,000 characters that the reference takes at once
        "a" * 399_990 + "b" * 30_000,
        "\ud83e\udd99 \ud83e lone",
        "<|begin_of_text|><|eot_id|>",
    ],
    ids=lambda text: f"{text[:20]!r}x{len(text)}",
)
def test_ids_equal_metas_tokenizer_at_its_edges(
    llama3_tokenizer: Tokenizer, reference: Any, text: str
) -> None:
    assert llama3_tokenizer.encode(text) == reference.encode(text, bos=False, eos=False)


@given(st.text(st.characters(), max_size=20))
def test_lone_surrogates_are_encoded_as_meta_does(
    llama3_tokenizer: Tokenizer, reference: Any, text: str
) -> None:
    assert llama3_tokenizer.encode(text) == reference.encode(text, bos=False, eos=False)


def test_control_ids_equal_metas_where_the_names_agree(llama3_tokenizer: Tokenizer, reference: Any) -> None:
    theirs = {n: i for n, i in reference.special_tokens.items() if "reserved" not in n}
    del theirs["<|step_id|>"], theirs["<|image|>"]  # named so in Meta's code, reserved on the Hub
    assert {n: i for n, i in llama3_tokenizer.control.items() if "reserved" not in n} == theirs
    assert llama3_tokenizer.vocab_size == reference.n_words == 128256
    assert FAMILIES["llama-3.1"].stop_ids(llama3_tokenizer) == set(reference.stop_tokens)


def test_reserved_names_differ_between_families_but_ids_do_not() -> None:
    first, later = control_names("llama-3"), control_names("llama-3.1")
    assert list(first.values()) == list(later.values()) == list(range(128000, 128256))
    assert first["<|reserved_special_token_250|>"] == later["<|reserved_special_token_247|>"] == 128255
    assert first["<|reserved_special_token_4|>"] == later["<|eom_id|>"] == 128008
    assert [first[token] for token in FAMILIES["llama-3"].stop_tokens] == [128001, 128009]


@settings(max_examples=50)
@given(MIXED)
def test_ranks_written_as_tokenizer_json_give_the_same_ids(
    llama3_tokenizer: Tokenizer, llama3_json: Path, text: str
) -> None:
    written = _cached(llama3_json, Tokenizer.from_hf)
    assert written.encode(text) == llama3_tokenizer.encode(text)
    assert written.control == llama3_tokenizer.control
    assert (written.bos_id, written.adds_bos) == (128000, True)


def test_transformers_reads_the_written_tokenizer(llama3_tokenizer: Tokenizer, llama3_json: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    oracle = PreTrainedTokenizerFast(tokenizer_file=str(llama3_json / "tokenizer.json"))
    text = "Hello, wörld!  1234567\n\n🦙 it's"
    assert oracle(text).input_ids == [128000, *llama3_tokenizer.encode(text)]


@given(MIXED)
def test_gguf_byte_level_ids_equal_the_gpt2_style_tokenizer_that_smollm2_publishes(
    smollm2: Tokenizer, smollm2_path: Path, text: str
) -> None:
    # SmolLM2's tokenizer.json cuts digits one by one and then as GPT-2 does; rebuilt here from the
    # library's own parts.
    oracle = _cached(smollm2_path, _smollm2_oracle)
    oracle.encode_special_tokens = True
    assert smollm2.encode(text) == oracle.encode(text, add_special_tokens=False).ids
    assert smollm2.decode(smollm2.encode(text)) == oracle.decode(oracle.encode(text).ids)


def test_a_long_text_gives_the_ids_of_the_library(smollm2: Tokenizer, smollm2_path: Path) -> None:
    oracle = _cached(smollm2_path, _smollm2_oracle)
    oracle.encode_special_tokens = True
    text = "".join(f"Line {number}: wörld 🦙 <|im_end|> it's\n" for number in range(2000))
    assert smollm2.encode(text) == oracle.encode(text, add_special_tokens=False).ids


@settings(max_examples=200)
@given(st.text("abcdefgh ABC.,é日\n<>/s", max_size=40))
def test_gguf_scores_give_the_ids_of_sentencepiece(sentencepiece_model: Any, text: str) -> None:
    processor, metadata = sentencepiece_model
    ours = _cached("sentencepiece", lambda _: Tokenizer.from_gguf(metadata))
    # SentencePiece itself folds and trims nothing here: the model was trained with the identity normalizer.
    assert ours.encode(text, first=True) == processor.encode(text)
    assert ours.decode(ours.encode(text)) == processor.decode(ours.encode(text)) == text


@pytest.mark.parametrize("scheme", ["legacy", "first", "always"])
def test_trusted_text_is_encoded_as_the_library_encodes_it_whole(tmp_path: Path, scheme: str) -> None:
    for source in (chatml_tokenizer_json(), sentencepiece_json(scheme)):
        (tmp_path / "tokenizer.json").write_text(source, encoding="utf-8")
        ours, oracle = Tokenizer.from_hf(tmp_path), OracleTokenizer.from_str(source)
        for text in (
            "<s> hello</s>\nworld",
            "<|im_start|>user\nhi <|im_end|>\n",
            " a <s>b",
            "<s>",
            "",
            "x  y",
        ):
            assert ours.encode_prompt_text(text) == oracle.encode(text, add_special_tokens=False).ids


def test_tokens_that_swallow_white_space_do_so(tmp_path: Path) -> None:
    fields = json.loads(chatml_tokenizer_json())
    for token in fields["added_tokens"]:
        token["rstrip"], token["lstrip"] = token["id"] == 1, token["id"] == 2
    source = json.dumps(fields)
    (tmp_path / "tokenizer.json").write_text(source, encoding="utf-8")
    text = "<|im_start|> \n user <|im_end|> \n"
    oracle = OracleTokenizer.from_str(source)
    assert Tokenizer.from_hf(tmp_path).encode_prompt_text(text) == oracle.encode(text).ids


@given(MIXED)
def test_content_never_yields_a_control_id(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    for source in (chatml_tokenizer_json(), sentencepiece_json("legacy")):
        tokenizer = _cached(source, lambda s: _written(s, tmp_path_factory.mktemp("t")))
        assert not any(tokenizer.is_control(i) for i in tokenizer.encode(text))


def test_a_vocabulary_that_merges_content_into_a_control_token_is_overruled(tmp_path: Path) -> None:
    fields = json.loads(chatml_tokenizer_json())
    # A whole word that is in the vocabulary is taken as it is with ignore_merges; here the word is a
    # control token.
    fields["model"]["ignore_merges"] = True
    fields["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields), encoding="utf-8")
    tokenizer = Tokenizer.from_hf(tmp_path)
    ids = tokenizer.encode("<|im_end|>")
    assert tokenizer.control["<|im_end|>"] not in ids
    assert tokenizer.decode(ids) == "<|im_end|>"


def test_bos_and_eos_come_from_the_side_files(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(chatml_tokenizer_json(), encoding="utf-8")
    side = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(side))
    tokenizer = Tokenizer.from_hf(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (1, 2, False)


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "not a readable tokenizer"), ("{}", "not a readable tokenizer"), ('{"model"', "not a readable")],
)
def test_a_damaged_tokenizer_json_is_refused_by_name(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=rf"tokenizer\.json.*{said}"):
        Tokenizer.from_hf(tmp_path)


def test_missing_and_foreign_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json does not exist"):
        Tokenizer.from_hf(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    with pytest.raises(TokenizerError, match=r"tokenizer\.model is not a Llama 3 tokenizer"):
        Tokenizer.from_meta(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.model").write_bytes(b"YQ== 0\nYg== 1\n")
    with pytest.raises(TokenizerError, match="2 ranks"):
        Tokenizer.from_meta(tmp_path / "tokenizer.model")
    with pytest.raises(TokenizerError, match="wordpiece"):
        Tokenizer.from_gguf({"tokenizer.ggml.model": "wordpiece", "tokenizer.ggml.tokens": []})


def test_a_tokenizer_of_another_model_is_refused(llama3_tokenizer: Tokenizer) -> None:
    check_fits(llama3_tokenizer, 128256)
    check_fits(llama3_tokenizer, 128512)  # padded
    for rows in (32000, 256000):
        with pytest.raises(TokenizerError, match=f"128256 tokens but .* {rows} rows"):
            check_fits(llama3_tokenizer, rows)


_CACHE: dict[Any, Any] = {}


def _cached(key: Any, make: Callable[[Any], Any]) -> Any:
    """Hypothesis calls a test many times; what it needs is made once."""
    if key not in _CACHE:
        _CACHE[key] = make(key)
    return _CACHE[key]


def _written(source: str, folder: Path) -> Tokenizer:
    (folder / "tokenizer.json").write_text(source, encoding="utf-8")
    return Tokenizer.from_hf(folder)


def _smollm2_oracle(path: Path) -> OracleTokenizer:
    from tokenizers import decoders, models, pre_tokenizers

    metadata = GgufFile(path).metadata
    vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    oracle = OracleTokenizer(models.BPE(vocab=vocab, merges=merges))
    oracle.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    oracle.decoder = decoders.ByteLevel()
    return oracle
