"""The model card of a quantized model: how it was made, and with what error."""

from __future__ import annotations

from corral.quantizer.recipe import Recipe
from corral.quantizer.result import QuantizeResult

_METHODS = {
    "rtn": "each weight rounded to the nearest number",
    "awq": "AWQ: channels that carry much are scaled before rounding, and outliers cut off",
    "gptq": "GPTQ: what rounding a column loses is made up for by the columns after it",
    "fp8": "8-bit floats (e4m3)",
}


def model_card(result: QuantizeResult, name: str) -> str:
    """README.md of a folder, with the metadata that the Hub reads."""
    recipe = result.recipe
    lines = [
        "---",
        "library_name: transformers",
        *_base_model(result.model),
        "tags:",
        "- quantized",
        f"- {recipe.method}",
        f"- {recipe.format}",
        "---",
        "",
        f"# {name}",
        "",
        f"`{result.model}`, quantized by Corral {result.version}: {numbers(recipe)}.",
        "",
        f"- Method: {_METHODS[recipe.method]}.",
        f"- Format: {recipe.format}, which Corral, transformers and vLLM read.",
        f"- Size: {_megabytes(result.num_bytes[1])}; in bfloat16 {_megabytes(result.num_bytes[0])}.",
        f"- Calibration: {calibration(result)}.",
        "- Embedding, head and norms are not quantized.",
        *([f"- Left as they are: {', '.join(recipe.ignore)}."] if recipe.ignore else []),
        "",
        "## What it costs",
        "",
        *_costs(result),
        "",
        "The licence is that of the original model.",
    ]
    return "\n".join(lines) + "\n"


def numbers(recipe: Recipe) -> str:
    """The numbers that weights and activations become, in words."""
    if recipe.method == "fp8":
        return {
            "dynamic": "8-bit floats with a scale to each row, and to each token at run time",
            "static": "8-bit floats with one scale for weights and one for inputs, found beforehand",
            "block": "8-bit floats with a scale to each block of 128 x 128, and to 128 inputs at run time",
            "meta": "8-bit floats with a scale to each row, in the feed-forward layers but two",
        }[str(recipe.preset)]
    if recipe.format == "bitsandbytes":
        return f"the 16 levels of nf4 with a scale to {recipe.group_size} weights"
    group = "row" if recipe.group_size is None else f"group of {recipe.group_size}"
    zeros = "" if recipe.symmetric else " and a zero point"
    inputs = "; inputs 8-bit integers with a scale to each token" if recipe.activations == "token" else ""
    return f"{recipe.bits}-bit integers with a scale{zeros} to each {group}{inputs}"


def calibration(result: QuantizeResult) -> str:
    """Which text was taken, in words."""
    texts = result.texts
    if texts["calibration"] is None:
        return "none"
    return f"{texts['samples']} windows of {texts['length']} tokens of {texts['calibration']}"


def _costs(result: QuantizeResult) -> list[str]:
    lines = ["| what | value |", "| --- | --- |"]
    perplexities = result.perplexities
    if perplexities is not None:
        lines.append(f"| perplexity before | {perplexities.before:.4f} |")
        lines.append(f"| perplexity after | {perplexities.after:.4f} |")
    lines.append(f"| error of the {result.measured_on} of a matrix, the mean | {result.mean_error:.3%} |")
    if result.mean_rtn_error is not None:
        lines.append(f"| the same with rounding to nearest | {result.mean_rtn_error:.3%} |")
    lines.append("")
    if perplexities is not None:
        lines.append(
            f"Perplexity is over {perplexities.tokens:,} tokens that were not calibrated on, with "
            "activations as they are."
        )
    lines.append(
        "An error is the sum of squares of what is off, over that of the whole; quantization_report.json has "
        "those of all matrices."
    )
    return lines


def _base_model(model: str) -> list[str]:
    return [f"base_model: {model.split('@')[0]}"] if model.count("/") == 1 else []


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
