"""How many tokens to guess ahead: as many as pay for themselves."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from corral.engine.speculation.step_costs import StepCosts

FIRST_LENGTH = 2  # tokens that are guessed at first
WINDOW = 8  # verifications after which a sequence is judged
LOWEST_ACCEPTANCE = 0.15  # of the drafted tokens; below it, the sequence pauses
FIRST_PAUSE = 32  # tokens; each further pause is twice as long,
LONGEST_PAUSE = 1024  # up to this
SEQUENCE_MEMORY = 1 - 1 / 8  # the weight that a verification leaves to those before it
ENGINE_MEMORY = 1 - 1 / 64
PRIOR = 2.0  # guesses of its own that weigh as much as what is known from all sequences


@dataclass
class Acceptance:
    """How often guesses are right, among those that were looked at: all up to the first wrong one."""

    hits: float = 0.0
    trials: float = 0.0

    def record(self, drafted: int, accepted: int, memory: float) -> None:
        """Takes in a verification; those before it keep `memory` of their weight."""
        self.hits = memory * self.hits + accepted
        self.trials = memory * self.trials + min(accepted + 1, drafted)


@dataclass
class DraftState:
    """What the control knows of one sequence.

    Attributes:
        length: tokens to guess, if guessing pays.
        resume_at: no guesses before the sequence has so many tokens.
        pause: how many tokens the next pause will take.
        verifications, drafted, accepted: counts since the sequence was last judged.
        acceptance: since its last pause.
    """

    length: int = FIRST_LENGTH
    resume_at: int = 0
    pause: int = FIRST_PAUSE
    verifications: int = 0
    drafted: int = 0
    accepted: int = 0
    acceptance: Acceptance = field(default_factory=Acceptance)

    def fork(self) -> DraftState:
        """An independent copy."""
        return replace(self, acceptance=replace(self.acceptance))


@dataclass(frozen=True)
class DraftStats:
    """Tokens drafted and accepted, and verifications: each is of one sequence in one step."""

    drafted: int = 0
    accepted: int = 0
    verifications: int = 0

    @property
    def acceptance_rate(self) -> float:
        """Accepted tokens per drafted one; 0 where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0


class DraftControl:
    """Decides, for all sequences of an engine, how many tokens to guess.

    A sequence begins with short drafts. They double while all is accepted; otherwise they are halved, or at
    least one longer than what was accepted. A sequence whose drafts are hardly ever right pauses, longer each
    time. Nothing is guessed while more than `max_batch` sequences decode: a large batch leaves no arithmetic
    idle.

    Once the engine says how long its steps take, guessing must pay as well. If each guess is right with
    probability p, then k of them give 1 + p + … + p^k tokens (Leviathan et al., 2023, arXiv:2211.17192). The
    k is taken for which a step with this sequence's guesses alone gives the most tokens per second; where
    that is 0 the sequence pauses too. What a step without guesses costs has to be known for this: while it is
    not, guesses are left out. A sequence that has shown little yet is taken to be like the others before it.

    What is decided depends on the calls alone; no clock is read here.

    Attributes:
        stats: what has come of all drafts so far.
    """

    def __init__(self, max_tokens: int = 8, max_batch: int = 4) -> None:
        self.stats = DraftStats()
        self._max_tokens, self._max_batch = max_tokens, max_batch
        self._costs: dict[int, StepCosts] = {}  # by the number of sequences
        self._acceptance = Acceptance(hits=3.2, trials=4.0)  # of all sequences; hopeful at first

    def draft_length(self, state: DraftState, num_tokens: int, num_decodes: int) -> int:
        """How many tokens to guess for a sequence of `num_tokens`, in a step that decodes `num_decodes`."""
        if num_tokens < state.resume_at or num_decodes > self._max_batch:
            return 0
        longest = min(state.length, self._max_tokens)
        costs = self._costs.get(num_decodes)
        if costs is None:
            return longest
        if not costs.known(num_decodes):
            return 0
        length = _most_profitable(costs, num_decodes, longest, self._expected_acceptance(state))
        costs.note_try(num_decodes + length)
        if length == 0:
            _pause(state, num_tokens)
        return length

    def record(self, state: DraftState, num_tokens: int, drafted: int, accepted: int) -> None:
        """Takes in that so many of a sequence's drafted tokens were right; it has `num_tokens` now."""
        assert 0 <= accepted <= drafted, "what is accepted was drafted"
        if drafted == 0:
            return
        stats = self.stats
        self.stats = DraftStats(stats.drafted + drafted, stats.accepted + accepted, stats.verifications + 1)
        state.verifications += 1
        state.drafted += drafted
        state.accepted += accepted
        state.acceptance.record(drafted, accepted, SEQUENCE_MEMORY)
        self._acceptance.record(drafted, accepted, ENGINE_MEMORY)
        if accepted < drafted:
            state.length = max(accepted + 1, drafted // 2)
        elif drafted >= state.length:  # a shorter draft than was asked for says nothing about longer ones
            state.length = min(2 * state.length, self._max_tokens)
        if state.verifications == WINDOW:
            _judge(state, num_tokens)

    def record_step(self, num_decodes: int, rows: int, seconds: float) -> None:
        """Takes in how long a step took that did nothing but decode so many sequences: with how many rows,
        those of drafts included, and how many seconds, those for making the drafts included."""
        if num_decodes <= self._max_batch:
            self._costs.setdefault(num_decodes, StepCosts()).record(rows, seconds)

    def _expected_acceptance(self, state: DraftState) -> float:
        """The probability that a guess for a sequence is right."""
        own, general = state.acceptance, self._acceptance
        return (own.hits + PRIOR * general.hits / general.trials) / (own.trials + PRIOR)


def _most_profitable(costs: StepCosts, num_decodes: int, longest: int, acceptance: float) -> int:
    """The number of guesses, at most `longest`, that gives the most tokens per second."""
    best, highest, tokens = 0, 0.0, num_decodes - 1.0
    for length in range(longest + 1):
        tokens += acceptance**length
        speed = tokens / costs.seconds(num_decodes + length)
        if speed > highest:
            best, highest = length, speed
    return best


def _judge(state: DraftState, num_tokens: int) -> None:
    """Lets a sequence pause whose latest drafts were hardly ever right."""
    if state.accepted < LOWEST_ACCEPTANCE * state.drafted:
        _pause(state, num_tokens)
    else:
        state.pause = FIRST_PAUSE
    state.verifications = state.drafted = state.accepted = 0


def _pause(state: DraftState, num_tokens: int) -> None:
    """Stops guessing for a while, to begin anew after it."""
    state.resume_at = num_tokens + state.pause
    state.pause = min(2 * state.pause, LONGEST_PAUSE)
    state.length, state.acceptance = FIRST_LENGTH, Acceptance()
