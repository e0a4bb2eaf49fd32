"""What a folder of items depends on, as a name: the same name, the same tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corral.errors import RenderError
from corral.text.messages import Message
from corral.text.rendered import Renderer
from corral.text.tokenizer import Tokenizer
from corral.tune.config import DataConfig
from corral.tune.data.places import Place

_CODE = ("text", "tune/data")  # all that lies between rows and tokens
_SAMPLE = "Hello, wörld!\n\n  It's 12345.67 東京 naïve\t— 'quoted' नमस्ते\r\n🙂 don't  STOP"
_DIALOG = (Message("system", "s"), Message("user", "u"), Message("assistant", "a"), Message("user", "v"))
_SETTINGS = ("train_on", "train_on_eos", "overlong", "tool_format", "system", "limit")


def store_name(
    places: Sequence[tuple[str, Place]],
    config: DataConfig,
    kind: str,
    max_length: int,
    tokenizer: Tokenizer,
    renderer: Renderer | None,
) -> str:
    """The name of the folder for some places, each with its part of the data: 32 hexadecimal digits.

    It depends on what the files hold, on every setting that changes tokens, on the vocabulary, the prompt
    format and the code that writes them.

    Raises:
        TuneError: a file cannot be read.
    """
    fields = {
        "code": _code(),
        "kind": kind,
        "max_length": max_length,
        "settings": {name: getattr(config, name) for name in _SETTINGS},
        "places": [
            (part, place.source.format, place.source.columns, _contents(place)) for part, place in places
        ],
        "tokenizer": _tokenizer(tokenizer),
        "renderer": _renderer(renderer),
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]


def _contents(place: Place) -> list[Any]:
    # The names stand in the reports.
    return [[name for name, _ in place.files], place.fingerprint()]


def _tokenizer(tokenizer: Tokenizer) -> Any:
    """Its vocabulary, and how it cuts a sample: the rest of it is slow to write down."""
    digest = hashlib.sha256()
    for token_id in range(tokenizer.vocab_size):
        spelled = tokenizer.token_bytes(token_id)
        digest.update(len(spelled).to_bytes(4, "little") + spelled)
    flags = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos, tokenizer.prefix_space]
    sample = tokenizer.encode(_SAMPLE), tokenizer.encode(_SAMPLE, first=True)
    return [digest.hexdigest(), dict(tokenizer.control), flags, sample]


def _renderer(renderer: Renderer | None) -> Any:
    """Its class, family or templates, and how it writes a sample: a template may ask for the date."""
    if renderer is None:
        return None
    family = getattr(getattr(renderer, "family", None), "name", None)
    sources = getattr(renderer, "sources", None)
    sample = next(filter(None, (_rendered(renderer, start) for start in range(3))), ())
    return [type(renderer).__name__, family, sources, sorted(renderer.stop_ids), sample]


def _rendered(renderer: Renderer, start: int) -> tuple[int, ...]:
    """The sample without its first messages, for which there may be no place."""
    try:
        return renderer.render(_DIALOG[start : 4 - start]).tokens
    except RenderError:
        return ()


def _code() -> str:
    package, digest = Path(__file__).parents[2], hashlib.sha256()
    for folder in _CODE:
        for file in sorted((package / folder).rglob("*")):
            if file.suffix in (".py", ".jinja"):
                digest.update(file.read_bytes())
    return digest.hexdigest()
