"""The bytes that tokens stand for, in the two ways that vocabularies spell them.

Byte-level vocabularies (GPT-2, Llama 3, SmolLM2) write each byte as one printable character. SentencePiece
vocabularies (Llama 2, TinyLlama) write text as it is, a space as U+2581, and rare bytes as <0xNN>.
"""

from __future__ import annotations

import re

_SPACE = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def byte_characters() -> dict[int, str]:
    """The character that byte-level vocabularies write for each byte (GPT-2's table).

    Printable Latin-1 characters stand for themselves; the other 68 bytes get the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    for index, byte in enumerate(byte for byte in range(256) if byte not in table):
        table[byte] = chr(0x100 + index)
    return table


_BYTES_OF_CHARACTER = {character: byte for byte, character in byte_characters().items()}


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a token of a byte-level vocabulary."""
    try:
        return bytes(_BYTES_OF_CHARACTER[character] for character in token)
    except KeyError:  # an added token, spelled as plain text
        return token.encode()


def sentencepiece_bytes(token: str) -> bytes:
    """The bytes of a token of a SentencePiece vocabulary."""
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace(_SPACE, " ").encode()
