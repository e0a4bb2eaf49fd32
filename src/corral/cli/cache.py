"""`corral cache`: what is kept so that models start quickly."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from corral.kernels.packed_cache import CacheEntry, PackedCache

_HUB_FOLDER = re.compile(r"models--([^/]+?)--([^/]+)")

cache = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@cache.callback()
def show(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List or clear the packed weights that are kept for a quick start.

    A model's weights are packed for this machine's kernels when it first runs on a CPU. What was used least
    recently goes when all take more than CORRAL_PACKED_CACHE_GB (32; with 0 nothing is kept). Downloads are
    not part of this.

    **Examples**

        corral cache
        corral cache --json
        corral cache clear --yes
    """
    if context.invoked_subcommand is not None:
        return
    from corral.kernels.packed_cache import PackedCache

    packed = PackedCache()
    entries = packed.list_entries()
    if as_json:
        typer.echo(json.dumps(_facts(packed, entries), indent=2, ensure_ascii=False))
        return
    _print_table(packed, entries)


@cache.command()
def clear(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove all packed weights; models pack theirs again at their next start.

    On a terminal it asks first. Models that run go on.

    **Examples**

        corral cache clear
        corral cache clear --yes
    """
    from corral.checkpoints.cache import size_in_words
    from corral.errors import ResolveError
    from corral.kernels.packed_cache import PackedCache

    packed = PackedCache()
    entries = packed.list_entries()
    if not entries:
        typer.echo(f"Nothing is kept in {packed.folder}.")
        return
    total = size_in_words(sum(entry.num_bytes for entry in entries))
    asks = not yes and sys.stdin is not None and sys.stdin.isatty()
    if asks and not typer.confirm(f"Remove {_count(len(entries))} ({total})?", default=True, err=True):
        return
    freed = packed.clear()
    left = packed.list_entries()
    if left:
        raise ResolveError(f"{left[0].file} cannot be removed; check who may write in {packed.folder}")
    typer.echo(f"Removed {_count(len(entries))}: {size_in_words(freed)} are free again.")


def _print_table(packed: PackedCache, entries: list[CacheEntry]) -> None:
    from rich.console import Console
    from rich.table import Table

    from corral.checkpoints.cache import size_in_words

    console = Console(highlight=False)
    if entries:
        table = Table()
        table.add_column("model", overflow="fold")
        table.add_column("weights")
        table.add_column("size", justify="right", no_wrap=True)
        table.add_column("last used", no_wrap=True)
        for entry in entries:
            used = datetime.fromtimestamp(entry.last_used).strftime("%Y-%m-%d %H:%M")
            table.add_row(_model(entry), _weights(entry), size_in_words(entry.num_bytes), used)
        console.print(table)
    total = size_in_words(sum(entry.num_bytes for entry in entries))
    limit = size_in_words(packed.limit) if packed.limit else "nothing: CORRAL_PACKED_CACHE_GB is 0"
    typer.echo(f"{_count(len(entries))}, {total} in {packed.folder}, which may hold {limit}")


def _facts(packed: PackedCache, entries: list[CacheEntry]) -> dict[str, Any]:
    return {
        "folder": str(packed.folder),
        "limit_bytes": packed.limit,
        "total_bytes": sum(entry.num_bytes for entry in entries),
        "entries": [
            {
                "model": _model(entry),
                "sources": entry.sources,
                **entry.choices,
                "file": str(entry.file),
                "bytes": entry.num_bytes,
                "last_used": datetime.fromtimestamp(entry.last_used).astimezone().isoformat("T", "seconds"),
            }
            for entry in entries
        ],
    }


def _model(entry: CacheEntry) -> str:
    """The model as a person names it: by the Hub, by its file, or by its folder."""
    if not entry.sources:
        return f"damaged: {entry.file.name}"
    from corral.checkpoints.cache import cache_folder

    first = Path(entry.sources[0])
    if match := _HUB_FOLDER.search(str(first)):
        return f"{match[1]}/{match[2]}"
    if (fetched := (cache_folder() / "models").resolve()) in first.parents:
        return first.relative_to(fetched).parts[0]
    return str(first if first.suffix == ".gguf" else first.parent)


def _weights(entry: CacheEntry) -> str:
    kind = str(entry.choices.get("dtype", ""))
    return f"as stored, {kind}" if entry.choices.get("as_stored") else kind


def _count(number: int) -> str:
    return f"{number} model{'' if number == 1 else 's'}"
