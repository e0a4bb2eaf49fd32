"""`corral info`: what a model is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from corral.cli import options
from corral.errors import CorralError

if TYPE_CHECKING:
    from corral.checkpoints.checkpoint import Checkpoint


def info(
    model: options.Model = options.DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a model is: family, parameters, context, format, and what its chat template supports.

    **Examples**

        corral info
        corral info ./my-finetune --json
    """
    from corral.checkpoints.source import open_model
    from corral.cli.progress import TerminalReport

    with TerminalReport() as report:
        facts = describe(open_model(model, report))
    if as_json:
        typer.echo(json.dumps({"model": model, **facts}, indent=2, ensure_ascii=False))
        return
    for name, value in {"model": model, **facts}.items():
        typer.echo(f"{name.replace('_', ' '):<17}{_readable(value)}")


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """The facts that `corral info` shows, by name."""
    config = checkpoint.config
    scaling = config.rope_scaling
    return {
        "family": checkpoint.family or "llama architecture",
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "stored_as": checkpoint.storage,
        "parameters": config.num_parameters,
        "context": config.max_position_embeddings,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "attention_heads": config.num_attention_heads,
        "key_value_heads": config.num_key_value_heads,
        "vocabulary": config.vocab_size,
        "rope": f"theta {config.rope_theta:g}" + (f", {scaling.kind} x{scaling.factor:g}" if scaling else ""),
        "tied_head": config.tie_word_embeddings,
        "chat": _describe_chat(checkpoint),
    }


def _describe_chat(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What the prompt format supports; None for a base model."""
    from corral.text.prompt_format import describe_format

    try:
        return describe_format(
            checkpoint.tokenizer(), chat_template=checkpoint.chat_template, family=checkpoint.family
        )
    except CorralError:
        return None


def _readable(value: Any) -> str:
    if value is None:
        return "none: this is a base model"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_readable(inner)}" for name, inner in value.items())
    return str(value)
