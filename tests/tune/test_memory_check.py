"""A run that would not fit is refused, with settings that would."""

from __future__ import annotations

import re

import pytest
import torch

from corral.model.presets import PRESETS
from corral.plan.devices import parse_devices
from corral.tune.config import RunConfig
from corral.tune.config_file import read_config
from corral.tune.errors import TuneError
from corral.tune.memory_check import require_memory

LLAMA_8B = "llama-3.1-8b-instruct"


def config_of(*settings: str) -> RunConfig:
    return read_config(None, ["data.train=rows.jsonl", *settings])


def require(config: RunConfig, devices: str, length: int = 2048) -> None:
    require_memory(config, PRESETS[LLAMA_8B].config, length, torch.bfloat16, parse_devices(devices))


def test_what_fits_passes() -> None:
    require(config_of("parameters.base=nf4", "compute.checkpointing=full"), "24GB")
    require(config_of("parameters.method=full", "compute.checkpointing=full"), "8x80GB")


@pytest.mark.parametrize(
    ("settings", "devices"),
    [(["parameters.method=full"], "80GB"), ([], "24GB"), (["parameters.base=nf4", "batch.size=16"], "24GB")],
)
def test_what_does_not_fit_is_refused_with_settings_that_would(settings: list[str], devices: str) -> None:
    config = config_of(*settings)
    with pytest.raises(TuneError, match=r"not enough memory: this run takes [\d.]+ GB") as caught:
        require(config, devices)
    changes = re.findall(r"--set (\S+)(?= )", str(caught.value).split("; --set compute.check_memory")[0])
    assert changes
    changed = config_of(*settings, *changes)
    require(changed, devices, length=changed.data.max_length or 2048)


def test_the_check_can_be_left_out() -> None:
    assert config_of().compute.check_memory
    assert not config_of("compute.check_memory=false").compute.check_memory
