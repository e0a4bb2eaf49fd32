"""What goes together in a recipe, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from corral.quantizer.errors import QuantizeError
from corral.quantizer.recipe import FORMATS, METHODS, Recipe
from tests.quantizer.models import MODEL


def test_each_method_has_its_usual_numbers_and_format() -> None:
    assert Recipe.of("rtn") == Recipe("rtn", "compressed-tensors", 4, 128, True)
    assert Recipe.of("gptq") == Recipe("gptq", "gptq", 4, 128, True)
    assert Recipe.of("awq") == Recipe("awq", "awq", 4, 128, False)
    assert Recipe.of("awq", format="gptq").symmetric
    assert not Recipe.of("awq", format="compressed-tensors").symmetric
    assert Recipe.of("fp8") == Recipe("fp8", "compressed-tensors", 8, None, True, "token", "dynamic")
    assert Recipe.of("fp8", preset="static").activations == "static"
    assert Recipe.of("fp8", preset="block").block == (128, 128)
    assert Recipe.of("fp8", preset="meta", format="fbgemm_fp8").activation_bound == 1200.0
    assert Recipe.of("rtn", format="bitsandbytes").group_size == 64
    assert Recipe.of("gptq", format="gguf").group_size == 32
    assert Recipe.of("rtn", group_size=-1).group_size is None
    w8a8 = Recipe.of("gptq", bits=8, int8_activations=True, format="compressed-tensors")
    assert (w8a8.group_size, w8a8.activations) == (None, "token")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"method": "hqq"}, "method is 'hqq'; it must be one of rtn, awq, gptq, fp8"),
        ({"method": ["rtn"]}, "method is"),
        ({"method": "rtn", "format": "exl2"}, "format is 'exl2'; it must be one of compressed-tensors, awq"),
        ({"method": "awq", "bits": 3}, "bits is 3; it must be one of 4 in the format awq"),
        ({"method": "gptq", "bits": 5}, "bits is 5; it must be one of 2, 3, 4, 8 in the format gptq"),
        ({"method": "rtn", "group_size": 0}, "group_size is 0; it must be a number of columns, or -1"),
        ({"method": "rtn", "group_size": 1.5}, r"group_size is 1\.5"),
        (
            {"method": "rtn", "format": "gguf", "group_size": 64},
            "group_size is 64; format gguf has groups of",
        ),
        ({"method": "rtn", "format": "bitsandbytes", "group_size": 48}, "blocks of 32, 64"),
        ({"method": "gptq", "symmetric": False}, "symmetric is false, but format gptq"),
        ({"method": "gptq", "format": "bitsandbytes"}, "made by method rtn"),
        ({"method": "awq", "search": True}, "search goes with rtn and gptq"),
        ({"method": "rtn", "preset": "meta"}, "preset is 'meta', which is one of method fp8, not of rtn"),
        ({"method": "rtn", "format": "fbgemm_fp8"}, "ask for method fp8"),
        ({"method": "rtn", "int8_activations": True}, "go with symmetric 8-bit weights"),
        ({"method": "rtn", "bits": 8, "int8_activations": True, "group_size": 32}, "a row has one scale"),
        ({"method": "fp8", "bits": 4}, "bits is 4, which method fp8 does not have"),
        ({"method": "fp8", "group_size": 128}, "group_size is 128, which method fp8 does not have"),
        ({"method": "fp8", "preset": "fast"}, "preset is 'fast'; it must be one of dynamic, static, block"),
        ({"method": "fp8", "format": "gguf"}, "holds no 8-bit floats"),
        ({"method": "fp8", "format": "fbgemm_fp8", "preset": "block"}, "not preset 'block'"),
        ({"method": "fp8", "int8_activations": True}, "int8 activations go with 8-bit integers"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(said: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantizeError, match=message):
        Recipe.of(**said)


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(QuantizeError, match=r"ignore is '\(', which is no regular expression"):
        Recipe.of("rtn", ignore=["("])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("format", FORMATS)
def test_every_pair_of_method_and_format_is_a_recipe_or_an_error_in_words(method: str, format: str) -> None:
    goes = {
        "rtn": set(FORMATS) - {"fbgemm_fp8"},
        "awq": {"compressed-tensors", "awq", "gptq", "gguf"},
        "gptq": {"compressed-tensors", "awq", "gptq", "gguf"},
        "fp8": {"compressed-tensors", "fbgemm_fp8"},
    }
    if format in goes[method]:
        recipe = Recipe.of(method, format=format)
        assert (recipe.method, recipe.format) == (method, format)
    else:
        with pytest.raises(QuantizeError, match=f"{method}|{format}"):
            Recipe.of(method, format=format)


def test_metas_preset_takes_the_feed_forward_layers_between_the_first_and_the_last() -> None:
    recipe = Recipe.of("fp8", preset="meta")
    taken = {
        (layer, name)
        for layer in range(3)
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        if recipe.takes(f"model.layers.{layer}.{name}", MODEL)
    }
    assert taken == {(1, "mlp.gate_proj"), (1, "mlp.up_proj"), (1, "mlp.down_proj")}


def test_modules_are_left_out_by_the_end_of_their_name_or_by_pattern() -> None:
    recipe = Recipe.of("rtn", ignore=["down_proj", r"model.layers.0.self_attn.[qk]_proj"])
    assert not recipe.takes("model.layers.2.mlp.down_proj", MODEL)
    assert not recipe.takes("model.layers.0.self_attn.q_proj", MODEL)
    assert recipe.takes("model.layers.1.self_attn.q_proj", MODEL)


def test_shapes_that_a_format_does_not_hold_are_refused_by_module() -> None:
    shapes = {"model.layers.0.mlp.up_proj": (96, 64)}
    with pytest.raises(
        QuantizeError, match=r"group_size is 48, .* 64 columns of model\.layers\.0\.mlp\.up_p"
    ):
        Recipe.of("rtn", group_size=48).check(shapes)
    with pytest.raises(QuantizeError, match="16 and 32 and 64 would"):
        Recipe.of("rtn", group_size=128).check(shapes)
    with pytest.raises(QuantizeError, match=r"format gptq packs 32 codes together, which .* with 72 rows"):
        Recipe.of("gptq", group_size=32).check({"model.layers.0.self_attn.k_proj": (72, 64)})
    with pytest.raises(QuantizeError, match="ignore leaves nothing to quantize"):
        Recipe.of("rtn").check({})
    Recipe.of("rtn", group_size=-1).check(shapes)
