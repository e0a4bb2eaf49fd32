"""The objective that a run asks for."""

from __future__ import annotations

from corral.tune.config import RunConfig
from corral.tune.loop import Ranks
from corral.tune.objectives.dpo import DPO
from corral.tune.objectives.kto import KTO
from corral.tune.objectives.objective import Objective
from corral.tune.objectives.orpo import ORPO
from corral.tune.objectives.reward import Reward
from corral.tune.objectives.sft import SFT


def objective_of(config: RunConfig, max_length: int, ranks: Ranks) -> Objective:
    """The objective of a run.

    Raises:
        TuneError: its settings do not go together.
    """
    match config.objective:
        case "sft" | "pretrain":
            return SFT()
        case "dpo":
            return DPO(config.dpo)
        case "kto":
            return KTO(config.kto, max_length, ranks.total)
        case "orpo":
            return ORPO(config.orpo)
        case "reward":
            return Reward(config.reward)
