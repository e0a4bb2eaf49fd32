"""Learning rates are those of transformers, step for step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import optimization

from corral.tune.config import ScheduleConfig
from corral.tune.errors import TuneError
from corral.tune.schedule import Schedule


def peer(total: int, make: Any, **settings: Any) -> list[float]:
    """The multipliers of a scheduler of transformers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer, **settings)
    return [scheduler.lr_lambdas[0](step) for step in range(total)]


def ours(total: int, **settings: Any) -> list[float]:
    schedule = Schedule.of(ScheduleConfig(**settings), total)
    return [schedule(step) for step in range(total)]


TOTAL = 57


@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5, 1.0, 10.0, 56.0])
def test_it_is_the_schedule_of_transformers(warmup: float) -> None:
    steps = int(warmup) if warmup >= 1 else -int(-warmup * TOTAL // 1)
    given = {"num_warmup_steps": steps, "num_training_steps": TOTAL}
    assert ours(TOTAL, kind="cosine", warmup=warmup) == pytest.approx(
        peer(TOTAL, optimization.get_cosine_schedule_with_warmup, **given), abs=1e-12
    )
    assert ours(TOTAL, kind="cosine", warmup=warmup, min_ratio=0.1) == pytest.approx(
        peer(TOTAL, optimization.get_cosine_with_min_lr_schedule_with_warmup, **given, min_lr_rate=0.1),
        abs=1e-12,
    )
    assert ours(TOTAL, kind="linear", warmup=warmup) == pytest.approx(
        peer(TOTAL, optimization.get_linear_schedule_with_warmup, **given), abs=1e-12
    )
    assert ours(TOTAL, kind="constant", warmup=warmup) == pytest.approx(
        peer(TOTAL, optimization.get_constant_schedule_with_warmup, num_warmup_steps=steps), abs=1e-12
    )


@pytest.mark.parametrize(
    ("warmup", "decay", "least"), [(0, 0.2, 0.0), (5, 10, 0.1), (0.1, 0.9, 0.25), (7, 50, 0)]
)
def test_wsd_is_that_of_transformers(warmup: float, decay: float, least: float) -> None:
    schedule = Schedule.of(ScheduleConfig(kind="wsd", warmup=warmup, decay=decay, min_ratio=least), TOTAL)
    expected = peer(
        TOTAL,
        optimization.get_wsd_schedule,
        num_warmup_steps=schedule.warmup,
        num_decay_steps=schedule.decay,
        num_training_steps=TOTAL,
        min_lr_ratio=least,
    )
    assert [schedule(step) for step in range(TOTAL)] == pytest.approx(expected, abs=1e-12)


def test_shares_are_rounded_up_to_steps() -> None:
    schedule = Schedule.of(ScheduleConfig(kind="wsd", warmup=0.03, decay=0.1), 101)
    assert (schedule.warmup, schedule.decay) == (4, 11)


@given(
    kind=st.sampled_from(["cosine", "linear", "constant", "wsd"]),
    total=st.integers(1, 40),
    warmup=st.floats(0, 0.5),
    decay=st.floats(0, 0.5),
    least=st.floats(0, 1),
)
def test_it_stays_between_nothing_and_the_highest(
    kind: str, total: int, warmup: float, decay: float, least: float
) -> None:
    schedule = Schedule.of(
        ScheduleConfig(kind=kind, warmup=warmup, decay=decay, min_ratio=least),  # type: ignore[arg-type]
        total,
    )
    values = [schedule(step) for step in range(total + 5)]
    assert all(0 <= value <= 1 + 1e-12 for value in values)
    assert schedule.warmup + schedule.decay <= total
    if kind in ("cosine", "linear") or schedule.decay:
        assert values[total:] == pytest.approx([least if total > schedule.warmup else 1.0] * 5)


def test_linear_ends_at_its_least() -> None:
    values = ours(10, kind="linear", warmup=0, min_ratio=0.5)
    assert values[0] == 1.0
    assert values[5] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": 2.5}, r"schedule\.warmup is 2\.5: steps are whole numbers"),
        ({"warmup": 57}, r"schedule\.warmup is 57 steps, but the run has 57: it would never reach"),
        ({"kind": "wsd", "decay": 7.5}, r"schedule\.decay is 7\.5: steps are whole"),
        ({"kind": "wsd", "warmup": 30, "decay": 28}, r"are 30 and 28 steps, but the run has 57; give fewer"),
        ({"kind": "wsd", "warmup": 0.6, "decay": 0.6}, r"are 35 and 35 steps, but the run has 57"),
    ],
)
def test_what_does_not_fit_into_the_run_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TuneError, match=message):
        Schedule.of(ScheduleConfig(**settings), TOTAL)
