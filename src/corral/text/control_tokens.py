"""The control tokens of Llama 3 tokenizers: 256 ids after the 128,000 ranks, with a name each.

Llama 3 and Llama 3.1 (and later) give some ids different names, and the reserved names shift with them, so
control tokens are looked up by id or by one of the meaningful names, never by a reserved name. The table is
that of the tokenizers published on the Hub.
"""

from __future__ import annotations

from corral.errors import TokenizerError

FIRST_CONTROL_ID = 128000
NUM_CONTROL_TOKENS = 256

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
START_HEADER = "<|start_header_id|>"
END_HEADER = "<|end_header_id|>"
END_OF_MESSAGE = "<|eom_id|>"
END_OF_TURN = "<|eot_id|>"
PYTHON_TAG = "<|python_tag|>"
RIGHT_PAD = "<|finetune_right_pad_id|>"

_LLAMA_3 = {0: BEGIN_OF_TEXT, 1: END_OF_TEXT, 6: START_HEADER, 7: END_HEADER, 9: END_OF_TURN}
_LLAMA_3_1 = {**_LLAMA_3, 4: RIGHT_PAD, 8: END_OF_MESSAGE, 10: PYTHON_TAG}

_NAMED = {"llama-3": _LLAMA_3, "llama-3.1": _LLAMA_3_1, "llama-3.2": _LLAMA_3_1, "llama-3.3": _LLAMA_3_1}


def control_names(family: str) -> dict[str, int]:
    """Name to id of all 256 control tokens of a family, in the order of their ids.

    Raises:
        TokenizerError: the family is none of Llama 3, 3.1, 3.2 and 3.3.
    """
    if family not in _NAMED:
        raise TokenizerError(f"{family!r} is no Llama 3 family; choose one of {', '.join(_NAMED)}")
    named, names, reserved = _NAMED[family], {}, 0
    for offset in range(NUM_CONTROL_TOKENS):
        name = named.get(offset)
        if name is None:
            name = f"<|reserved_special_token_{reserved}|>"
            reserved += 1
        names[name] = FIRST_CONTROL_ID + offset
    return names
