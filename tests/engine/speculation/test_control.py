"""The control under simulated workloads: sequences whose guesses are right as often as is wanted."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.engine.speculation.control import (
    FIRST_LENGTH,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    WINDOW,
    DraftControl,
    DraftState,
)
from corral.engine.speculation.step_costs import ENOUGH, FORGET, StepCosts

Cost = Callable[[int], float]


class Simulation:
    """One sequence that is generated with guesses, each right with a certain probability."""

    def __init__(self, acceptance: float, cost: Cost | None = None) -> None:
        self.control = DraftControl(max_tokens=8, max_batch=4)
        self.state = DraftState()
        self.acceptance, self.cost = acceptance, cost
        self.num_tokens = 0
        self.seconds = 0.0
        self.lengths: list[int] = []
        self._random = random.Random(0)

    def step(self) -> int:
        """One step; gives how many tokens were guessed."""
        drafted = self.control.draft_length(self.state, self.num_tokens, 1)
        accepted = 0
        while accepted < drafted and self._random.random() < self.acceptance:
            accepted += 1
        self.control.record(self.state, self.num_tokens, drafted, accepted)
        if self.cost is not None:
            self.seconds += self.cost(1 + drafted)
            self.control.record_step(1, 1 + drafted, self.cost(1 + drafted))
        self.num_tokens += accepted + 1
        self.lengths.append(drafted)
        return drafted

    def run(self, steps: int) -> Simulation:
        for _ in range(steps):
            self.step()
        return self

    @property
    def speedup(self) -> float:
        """How much faster than without guesses."""
        assert self.cost is not None
        return self.num_tokens * self.cost(1) / self.seconds


def test_drafts_double_to_the_longest_while_all_is_accepted() -> None:
    assert Simulation(acceptance=1.0).run(5).lengths == [2, 4, 8, 8, 8]


@pytest.mark.parametrize(("accepted", "length"), [(0, 4), (3, 4), (5, 6), (7, 8)])
def test_a_draft_is_halved_or_one_longer_than_what_was_accepted(accepted: int, length: int) -> None:
    control, state = DraftControl(), DraftState(length=8)
    control.record(state, 100, drafted=8, accepted=accepted)
    assert control.draft_length(state, 100, 1) == length


def test_drafts_that_are_never_right_shrink_to_one_token() -> None:
    assert Simulation(acceptance=0.0).run(4).lengths == [2, 1, 1, 1]


def test_an_accepted_draft_that_was_shorter_than_asked_for_proves_nothing_about_longer_ones() -> None:
    control, state = DraftControl(), DraftState(length=4)
    control.record(state, 100, drafted=1, accepted=1)
    assert control.draft_length(state, 100, 1) == 4


def test_guesses_that_are_never_right_end_within_eight_verifications_and_are_tried_again_later() -> None:
    simulation = Simulation(acceptance=0.0).run(4 * FIRST_PAUSE)
    guessing = [i for i, length in enumerate(simulation.lengths) if length]
    assert guessing[:WINDOW] == list(range(8))
    assert guessing[WINDOW] == 7 + FIRST_PAUSE
    assert simulation.lengths[guessing[WINDOW]] == FIRST_LENGTH


def test_pauses_grow_to_a_bound_while_guesses_stay_wrong() -> None:
    simulation = Simulation(acceptance=0.0).run(8 * LONGEST_PAUSE)
    last_of_each = [
        i for i, length in enumerate(simulation.lengths[:-1]) if length and not simulation.lengths[i + 1]
    ]
    pauses = [later - WINDOW + 1 - sooner for sooner, later in itertools.pairwise(last_of_each)]
    assert pauses == [32, 64, 128, 256, 512, *[1024] * (len(pauses) - 5)]
    assert len(pauses) > 6


def test_a_sequence_whose_guesses_become_right_is_not_held_by_what_it_was() -> None:
    simulation = Simulation(acceptance=0.0).run(30)
    simulation.acceptance = 1.0
    assert simulation.run(FIRST_PAUSE + 5).lengths[-1] == 8
    simulation.acceptance = 0.0
    lengths = simulation.run(WINDOW + FIRST_PAUSE + 20).lengths[-WINDOW - FIRST_PAUSE - 20 :]
    first_pause = "".join("x" if length else " " for length in lengths).strip().split("x")
    assert max(map(len, first_pause)) == FIRST_PAUSE - 1, "the pauses begin short again"


def test_more_sequences_than_the_largest_batch_guess_nothing() -> None:
    control = DraftControl(max_batch=3)
    assert [control.draft_length(DraftState(), 0, n) for n in (1, 3, 4, 64)] == [2, 2, 0, 0]


def test_nothing_is_guessed_where_a_row_costs_as_much_as_a_step() -> None:
    simulation = Simulation(acceptance=0.7, cost=lambda rows: 0.02 * rows).run(600)
    assert sum(map(bool, simulation.lengths)) < 10
    assert simulation.speedup > 0.97


def test_guesses_grow_long_where_rows_cost_next_to_nothing() -> None:
    simulation = Simulation(acceptance=0.9, cost=lambda rows: 0.02 + 0.0002 * rows).run(600)
    assert simulation.speedup > 4


def test_only_as_many_are_guessed_as_pay() -> None:
    def dear_after_three(rows: int) -> float:
        return 0.02 if rows <= 3 else 0.02 * rows

    simulation = Simulation(acceptance=0.95, cost=dear_after_three).run(300)
    assert max(simulation.lengths[100:]) == 2
    assert simulation.speedup > 2


@given(
    acceptance=st.floats(0.0, 1.0),
    per_row=st.floats(0.0, 1.0),
    first_extra=st.floats(0.0, 2.0),
)
def test_whatever_rows_cost_and_however_often_guesses_are_right_hardly_anything_is_lost(
    acceptance: float, per_row: float, first_extra: float
) -> None:
    def cost(rows: int) -> float:
        return 1.0 + per_row * (rows - 1) + (first_extra if rows > 1 else 0.0)

    assert Simulation(acceptance, cost).run(600).speedup > 0.9


def test_a_step_without_guesses_is_measured_before_guesses_are_judged_by_their_cost() -> None:
    simulation = Simulation(acceptance=1.0, cost=lambda _: 1.0)
    simulation.run(2 + ENOUGH)
    assert simulation.lengths == [2, *[0] * ENOUGH, 4]


def test_one_slow_step_decides_nothing() -> None:
    control = DraftControl()
    for seconds in (0.02, 0.02, 9.0, 0.021, 0.019):
        control.record_step(1, 1, 0.019)
        for rows in range(2, 6):
            control.record_step(1, rows, seconds)
    assert control.draft_length(DraftState(length=4), 0, 1) == 4


def test_a_clock_that_sees_no_time_does_no_harm() -> None:
    simulation = Simulation(acceptance=1.0, cost=lambda _: 0.0).run(10)
    assert simulation.lengths[-1] == 8


def test_old_costs_are_forgotten() -> None:
    costs = StepCosts()
    for _ in range(ENOUGH):
        costs.record(4, 1.0)
    for _ in range(FORGET - 1):
        costs.record(1, 0.1)
        assert costs.known(4)
    costs.record(1, 0.1)
    assert not costs.known(4)
    assert costs.known(1)


def test_old_tries_are_forgotten() -> None:
    costs = StepCosts()
    for _ in range(ENOUGH):
        costs.note_try(3)
    for rows in [2, 6] * (FORGET // 2 - 1):
        costs.record(rows, rows)
    assert costs.seconds(3) == 3.0
    costs.record(2, 2)
    costs.record(6, 6)
    assert costs.seconds(3) == 2.0


def test_row_counts_that_no_try_leads_to_are_interpolated() -> None:
    costs = StepCosts()
    for _ in range(ENOUGH):
        costs.record(2, 0.02)
        costs.record(6, 0.04)
    for _ in range(ENOUGH):
        assert costs.seconds(3) == 0.02, "what is not known is hoped to cost nothing"
        costs.note_try(3)
    assert costs.seconds(3) == pytest.approx(0.025)
    assert costs.seconds(6) == costs.seconds(9) == 0.04


def test_sequences_that_guess_together_learn_what_that_costs() -> None:
    control, states = DraftControl(), [DraftState(), DraftState()]
    guessing = 0
    for num_tokens in range(0, 400, 2):
        drafted = [control.draft_length(state, num_tokens, 2) for state in states]
        control.record_step(2, 2 + sum(drafted), 2.0 + sum(drafted))
        for state, length in zip(states, drafted, strict=True):
            control.record(state, num_tokens, length, length // 2)
        guessing += any(drafted)
    assert guessing < 20


def test_a_new_sequence_is_expected_to_be_like_those_before_it() -> None:
    def dear(rows: int) -> float:
        return 0.02 if rows == 1 else 0.04

    simulation = Simulation(acceptance=0.1, cost=dear).run(100)
    simulation.state = DraftState()
    assert simulation.run(20).lengths[-20:] == [0] * 20
    simulation = Simulation(acceptance=0.95, cost=dear).run(100)
    simulation.state = DraftState()
    assert simulation.run(20).lengths[-20] == FIRST_LENGTH


def test_costs_of_other_batch_sizes_do_not_mix() -> None:
    control, state = DraftControl(), DraftState()
    for _ in range(ENOUGH):
        control.record_step(2, 2, 0.02)
        control.record_step(2, 3, 9.0)
        control.record_step(2, 4, 9.0)
    assert control.draft_length(state, 0, 1) == FIRST_LENGTH
    assert control.draft_length(state.fork(), 0, 2) == 0


def test_what_came_of_drafts_is_counted() -> None:
    control = DraftControl()
    assert control.stats.acceptance_rate == 0.0
    control.record(DraftState(), 10, drafted=4, accepted=3)
    control.record(DraftState(), 10, drafted=4, accepted=0)
    control.record(DraftState(), 10, drafted=0, accepted=0)
    stats = control.stats
    assert (stats.drafted, stats.accepted, stats.verifications) == (8, 3, 2)
    assert stats.acceptance_rate == pytest.approx(3 / 8)


def test_a_fork_of_a_state_is_independent() -> None:
    control, state = DraftControl(), DraftState()
    control.record(state, 10, drafted=2, accepted=1)
    twin = state.fork()
    trials = twin.acceptance.trials
    for _ in range(WINDOW - 1):
        control.record(state, 10, drafted=2, accepted=0)
    assert twin.acceptance.trials == trials
    assert control.draft_length(state, 10, 1) == 0
    assert control.draft_length(twin, 10, 1) == FIRST_LENGTH
