"""What a peer is. Imported inside the peers' environments, too: standard library only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Prompt = list[int]


class Running(Protocol):
    """A peer with a model loaded. Requests are greedy and give `new_tokens` tokens, whatever they are."""

    def single(self, prompt: Prompt, new_tokens: int) -> list[float]:
        """Runs one request; gives the `time.perf_counter()` of each new token."""
        ...


class Batching(Running, Protocol):
    """A peer that can also run many requests at once."""

    def many(self, prompts: Sequence[Prompt], new_tokens: int) -> int:
        """Runs requests of one length all at once; gives how many tokens came."""
        ...


@dataclass(frozen=True)
class Load:
    """What a peer is to load: a file or folder, and room for `slots` sequences of `context` tokens.

    `cores` are the processors that the peer may use, with a thread for each.
    """

    model: str
    cores: tuple[int, ...]
    context: int
    slots: int = 1

    @property
    def threads(self) -> int:
        return len(self.cores)


@dataclass(frozen=True)
class Peer:
    """An engine, as data.

    Attributes:
        name: as `--peers` takes it.
        package: the distribution whose version is reported.
        version: of it; part of the environment's folder, so a new version is a new environment.
        installs: pip's arguments, one call after the other.
        finish: given the environment's folder, further commands that complete the installation.
        load: loads a model; runs inside the peer's environment.
        models: the model file for each kind of weights that the peer can run, see `models.RECIPES`.
        many: what it loads is `Batching`.
        removes: what pip brings and the peer runs without: torchvision, where it is not made for the same
            build of torch, fails when it is imported, and whatever imports it with it.
        environ: variables for the installation, such as a compiler's flags.
        run_environ: variables for the runs.
    """

    name: str
    package: str
    version: str
    installs: tuple[tuple[str, ...], ...]
    load: Callable[[Load], Running]
    models: dict[str, str]
    many: bool = False
    removes: tuple[str, ...] = ()
    finish: Callable[[Path], list[list[str]]] | None = None
    environ: dict[str, str] | None = None
    run_environ: dict[str, str] | None = None
