"""Settings that do not go together are refused by name, before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from corral.tune.config import RunConfig
from corral.tune.errors import TuneError
from corral.tune.parallel import require_possible


def config(**sections: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate({"data": {"train": "rows.jsonl"}, **sections})


@pytest.mark.parametrize(
    ("processes", "sections", "words"),
    [
        (
            3,
            {"parallel": {"tensor": 2}, "parameters": {"method": "full"}},
            "does not divide .*, 3; start 2 or",
        ),
        (
            1,
            {"parallel": {"shard": True}},
            "parallel.shard is true, but there is one process .* --nproc",
        ),
        (2, {"parallel": {"cpu_offload": True}}, "parallel.cpu_offload needs .* set parallel.shard to true"),
        (2, {"parallel": {"tensor": 2}}, "parameters.method is 'lora': adapters cannot be split"),
        (2, {"parallel": {"shard": True}, "parameters": {"base": "nf4"}}, "parameters.base is 'nf4'"),
        (
            2,
            {"parallel": {"shard": True}, "optimizer": {"name": "adamw_8bit"}},
            "optimizer.name is adamw_8bit",
        ),
    ],
)
def test_it_is_refused(processes: int, sections: dict[str, dict[str, Any]], words: str) -> None:
    with pytest.raises(TuneError, match=words):
        require_possible(config(**sections), processes)


def test_what_goes_together_is_accepted() -> None:
    require_possible(config(), 1)
    require_possible(config(optimizer={"name": "adamw_8bit"}, parameters={"base": "nf4"}), 2)
    require_possible(config(parallel={"shard": True, "cpu_offload": True}), 2)
    full: dict[str, dict[str, Any]] = {
        "parameters": {"method": "full"},
        "parallel": {"shard": True, "tensor": 2},
    }
    require_possible(config(**full), 4)
