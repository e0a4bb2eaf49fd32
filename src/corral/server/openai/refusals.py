"""Fields that are known and cannot be honoured: they are refused in words that say why."""

from __future__ import annotations

from typing import Any

from pydantic import BeforeValidator


def refused(why: str, *fine: Any) -> BeforeValidator:
    """Refuses whatever is given for a field but null and the values that are `fine`.

    To be used as `Annotated[None, refused("say why")]`, or with a type that holds the values that are fine.
    """

    def check(value: Any) -> Any:
        if value is None or any(type(value) is type(one) and value == one for one in fine):
            return value
        raise ValueError(why)

    return BeforeValidator(check)
