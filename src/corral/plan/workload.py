"""What a plan is made for: the small protocol that serving and training share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol, Self

from corral.errors import PlanError
from corral.model.config import LlamaConfig


@dataclass(frozen=True)
class Part:
    """One use of memory: a name, the bytes on the busiest device, and how they came about."""

    name: str
    bytes: int
    note: str


class Workload(Protocol):
    """Work on a model that takes memory; `length` and `batch` are the two sizes that a user can trade.

    Neither more length nor more batch may ever take less memory: the searches for what fits rely on it.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def length(self) -> int:
        """Tokens of one sequence."""

    @property
    def batch(self) -> int:
        """Sequences at once."""

    @property
    def length_flag(self) -> str:
        """The flag that sets the length."""

    def resized(self, *, length: int | None = None, batch: int | None = None) -> Self:
        """The same work with another length or batch."""

    def resolved(self, config: LlamaConfig) -> Self:
        """The same work with the formats that were left to the model named."""

    def check(self, config: LlamaConfig, devices: int) -> None:
        """Raises PlanError where this work makes no sense for this model on so many devices."""

    def parts(self, config: LlamaConfig, devices: int) -> tuple[Part, ...]:
        """What takes memory on the busiest device."""

    def savings(self, config: LlamaConfig) -> Iterator[tuple[Mapping[str, str], Self]]:
        """Ways to do the same work in less memory, gentlest first: the flags to set, and what they make."""


def check_length(config: LlamaConfig, length: int, flag: str) -> None:
    """Raises PlanError where a length is no number of tokens that the model can see."""
    check_at_least_one(flag, length)
    if length > config.max_position_embeddings:
        raise PlanError(
            f"{flag} is {length}, but the model sees at most {config.max_position_embeddings} tokens "
            "(max_position_embeddings)"
        )


def check_at_least_one(flag: str, value: int) -> None:
    """Raises PlanError where a count is less than one."""
    if value < 1:
        raise PlanError(f"{flag} is {value}; it must be at least 1")


def divide_up(amount: int, divisor: int) -> int:
    """The larger share when `amount` is divided: rounded up."""
    return -(-amount // divisor)
