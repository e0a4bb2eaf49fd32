"""Small tokenizers for tests, made with the library that defines the format."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

_TEXT = [
    "The quick brown fox jumps over the lazy dog. <|im_start|> user assistant system tool",
    "Numbers 0123456789 and punctuation: {}[]()<>|/\\'\"!?;,.-_=+*&^%$#@~`",
    "hello world, hello again; the world is wide and the fox is quick",
]


@cache
def chatml_tokenizer_json() -> str:
    """A byte-level tokenizer with ChatML's control tokens at ids 0 to 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT * 4, trainer)
    return str(tokenizer.to_str())


@cache
def sentencepiece_json(prefix_space: str) -> str:
    """A tokenizer in the style of Llama 2 and TinyLlama.

    `prefix_space` is where the dummy space goes: "legacy" (a normalizer, before every piece of text), or a
    Metaspace pre-tokenizer's "first" or "always".
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {text}" for text in _TEXT * 4], trainer)
    if prefix_space == "legacy":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    else:
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix_space, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fields = json.loads(tokenizer.to_str())
    fields["added_tokens"] = [token for token in fields["added_tokens"] if token["id"] < 3]
    return json.dumps(fields)
