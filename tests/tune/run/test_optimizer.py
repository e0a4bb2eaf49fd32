"""Steps are those of PyTorch's and bitsandbytes' AdamW; what is not finite changes nothing."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from corral.tune import adamw
from corral.tune.config import DataConfig, OptimizerConfig, ParametersConfig, RunConfig
from corral.tune.errors import TuneError
from corral.tune.optimizer import Optimizer, global_norm, learning_rate

LR = 1e-3
SETTINGS: dict[str, Any] = {"weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-6}


def weights(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, nn.Parameter]:
    """Matrices and a vector; one of them has more than a stretch of numbers when these are short."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"up.weight": (70, 31), "down.weight": (3, 5), "norm.weight": (13,), "head.weight": (128, 64)}
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for name, shape in shapes.items()
    }


def set_gradients(parameters: Mapping[str, Tensor], step: int, size: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters.values():
        parameter.grad = (size * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)


def train(
    parameters: Mapping[str, Tensor], optimizer: Optimizer, steps: range, size: float = 1.0
) -> list[float]:
    norms = []
    for step in steps:
        set_gradients(parameters, step, size)
        norms.append(optimizer.step(LR / (1 + step)))
        optimizer.zero_grad()
    return norms


def pytorch(parameters: Mapping[str, nn.Parameter], steps: int, clip: float, size: float = 1.0) -> None:
    """What PyTorch's own classes do, parameter by parameter."""
    decayed = [parameter for parameter in parameters.values() if parameter.dim() > 1]
    others = [parameter for parameter in parameters.values() if parameter.dim() == 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, foreach=False, fused=False, **SETTINGS)
    for step in range(steps):
        set_gradients(parameters, step, size)
        torch.nn.utils.clip_grad_norm_(parameters.values(), clip)
        for group in optimizer.param_groups:
            group["lr"] = LR / (1 + step)
        optimizer.step()


@pytest.fixture(params=[2**20, 1024], ids=["whole", "stretches"])
def _stretch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(adamw._STRETCH, "cpu", request.param)


@pytest.mark.parametrize("clip", [0.5, 1e9])
def test_steps_are_those_of_pytorch(clip: float) -> None:
    mine, theirs = weights(), weights()
    train(mine, Optimizer(mine, OptimizerConfig(**SETTINGS, max_grad_norm=clip)), range(6))
    pytorch(theirs, 6, clip)
    for name, parameter in mine.items():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.usefixtures("_stretch")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_with_float32_states_are_a_rounded_float32_model(dtype: torch.dtype) -> None:
    mine = weights(dtype)
    exact = {name: nn.Parameter(parameter.detach().float()) for name, parameter in mine.items()}
    config = OptimizerConfig(**SETTINGS, max_grad_norm=0)
    small, large = Optimizer(mine, config), Optimizer(exact, config)
    for step in range(8):
        set_gradients(mine, step)
        for name, parameter in exact.items():
            gradient = mine[name].grad
            assert gradient is not None
            parameter.grad = gradient.float()
        small.step(1e-5)
        large.step(1e-5)
        for name, parameter in mine.items():
            assert torch.equal(parameter, exact[name].to(dtype)), name
            assert torch.equal(small.state_dict()[f"{name}.float32"], exact[name])


@pytest.mark.usefixtures("_stretch")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bfloat16_states_are_rounded_after_arithmetic_in_float32(dtype: torch.dtype) -> None:
    mine = weights(dtype)
    before = {name: parameter.detach().float().clone() for name, parameter in mine.items()}
    optimizer = Optimizer(mine, OptimizerConfig(**SETTINGS, states="bfloat16", max_grad_norm=0))
    train(mine, optimizer, range(1))
    set_gradients(mine, 0)
    state = optimizer.state_dict()
    assert not any(name.endswith("float32") for name in state)
    for name, parameter in mine.items():
        gradient = parameter.grad
        assert gradient is not None
        decay = 0.1 if parameter.dim() > 1 else 0.0
        stepped = before[name] * (1 - LR * decay) - LR * gradient.float() / (gradient.float().abs() + 1e-6)
        torch.testing.assert_close(parameter.float(), stepped.to(dtype).float(), rtol=8e-3, atol=1e-6)
        assert state[f"{name}.exp_avg"].dtype == torch.bfloat16
        expected = (0.2 * gradient.float()).bfloat16()
        torch.testing.assert_close(state[f"{name}.exp_avg"], expected, rtol=8e-3, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("_stretch")
def test_8_bit_steps_are_those_of_bitsandbytes(dtype: torch.dtype) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    mine, theirs = weights(dtype), weights(dtype)
    config = OptimizerConfig(name="adamw_8bit", **SETTINGS, max_grad_norm=0)
    train(mine, Optimizer(mine, config), range(4))
    groups = [
        {"params": [p for p in theirs.values() if p.dim() > 1]},
        {"params": [p for p in theirs.values() if p.dim() == 1], "weight_decay": 0.0},
    ]
    peer = bitsandbytes.optim.AdamW8bit(groups, lr=LR, **SETTINGS)
    for step in range(4):
        set_gradients(theirs, step)
        for group in peer.param_groups:
            group["lr"] = LR / (1 + step)
        peer.step()
    head = peer.state[theirs["head.weight"]]["state1"]
    assert head.dtype == torch.uint8
    assert torch.equal(mine["head.weight"], theirs["head.weight"]), "8 bits"
    for name in ("up.weight", "down.weight", "norm.weight"):  # small: float32 moments
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(mine[name], theirs[name], rtol=tolerance, atol=tolerance, msg=name)


def test_8_bit_steps_without_bitsandbytes_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(
        TuneError, match=r"adamw_8bit, which needs bitsandbytes: pip install 'corral\[bitsandb"
    ):
        Optimizer(weights(), OptimizerConfig(name="adamw_8bit"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_that_over_all_gradients_in_float32(dtype: torch.dtype) -> None:
    parameters = weights(dtype)
    (norm,) = train(parameters, Optimizer(parameters, OptimizerConfig(max_grad_norm=0.1)), range(1))
    set_gradients(parameters, 0)
    everything = torch.cat([p.grad.double().flatten() for p in parameters.values() if p.grad is not None])
    assert norm == pytest.approx(float(everything.norm()), rel=1e-6)
    assert global_norm([]) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "config", [OptimizerConfig(), OptimizerConfig(states="bfloat16"), OptimizerConfig(max_grad_norm=0)]
)
def test_a_step_that_is_not_finite_changes_nothing(bad: float, config: OptimizerConfig) -> None:
    parameters = weights(torch.bfloat16)
    optimizer = Optimizer(parameters, config)
    train(parameters, optimizer, range(2))
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    state = {name: tensor.clone() for name, tensor in optimizer.state_dict().items()}
    set_gradients(parameters, 2)
    gradient = parameters["down.weight"].grad
    assert gradient is not None
    gradient[1, 1] = bad
    assert not math.isfinite(optimizer.step(LR))
    assert (optimizer.steps, optimizer.skipped) == (2, 1)
    assert all(torch.equal(parameter, before[name]) for name, parameter in parameters.items())
    now = optimizer.state_dict()
    assert [name for name in state if not torch.equal(state[name], now[name])] == [
        "skipped",
        "skipped_in_a_row",
    ]
    set_gradients(parameters, 3)
    optimizer.step(1.0)
    assert not any(torch.equal(parameter, before[name]) for name, parameter in parameters.items())


def test_the_third_such_step_in_a_row_is_refused() -> None:
    parameters = weights()
    optimizer = Optimizer(parameters, OptimizerConfig())
    train(parameters, optimizer, range(4))
    train(parameters, optimizer, range(4, 6), size=math.nan)
    train(parameters, optimizer, range(6, 7))
    train(parameters, optimizer, range(7, 9), size=math.nan)
    with pytest.raises(
        TuneError, match=r"gradients of 3 steps in a row are not finite .* as after 5 good steps; lower"
    ):
        train(parameters, optimizer, range(9, 10), size=math.inf)


@pytest.mark.parametrize("states", ["float32", "bfloat16", "8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_goes_on_bit_for_bit(states: str, dtype: torch.dtype) -> None:
    if states == "8bit":
        pytest.importorskip("bitsandbytes")
        config = OptimizerConfig(name="adamw_8bit", **SETTINGS)
    else:
        config = OptimizerConfig(states=states, **SETTINGS)  # type: ignore[arg-type]
    whole = weights(dtype)
    train(whole, Optimizer(whole, config), range(10))
    first = weights(dtype)
    begun = Optimizer(first, config)
    train(first, begun, range(4))
    train(first, begun, range(99, 100), size=math.nan)
    kept = {name: tensor.clone() for name, tensor in begun.state_dict().items()}
    second = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in first.items()}
    other = Optimizer(second, config)
    other.load_state_dict(kept)
    assert (other.steps, other.skipped) == (4, 1)
    train(second, other, range(4, 10))
    assert all(torch.equal(whole[name], parameter) for name, parameter in second.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"parameters": {"up.weight": nn.Parameter(torch.zeros(70, 31))}},
            r"lacks|has a foreign down\.weight\.exp_avg and",
        ),
        (
            {"config": OptimizerConfig(states="bfloat16")},
            r"as float32 \[13\], and it is bfloat16 \[13\] here",
        ),
    ],
)
def test_a_state_of_another_optimizer_is_refused(change: dict[str, Any], message: str) -> None:
    state = Optimizer(weights(), OptimizerConfig()).state_dict()
    other = Optimizer(change.get("parameters", weights()), change.get("config", OptimizerConfig()))
    with pytest.raises(TuneError, match=f"the optimizer's state .*{message}"):
        other.load_state_dict(state)


def test_a_parameter_without_a_gradient_stays() -> None:
    parameters = weights()
    before = parameters["up.weight"].detach().clone()
    optimizer = Optimizer(parameters, OptimizerConfig())
    set_gradients(parameters, 0)
    parameters["up.weight"].grad = None
    optimizer.step(LR)
    assert torch.equal(parameters["up.weight"], before)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in parameters.values())


def test_learning_rates_suit_what_is_trained() -> None:
    data, full = DataConfig(train="x"), ParametersConfig(method="full")
    assert learning_rate(RunConfig(data=data)) == 2e-4
    assert learning_rate(RunConfig(data=data, parameters=full)) == 2e-5
    assert learning_rate(RunConfig(data=data, parameters=full, objective="dpo")) == pytest.approx(2e-6)
    assert learning_rate(RunConfig(data=data, optimizer=OptimizerConfig(lr=0.5))) == 0.5


def test_a_sharded_model_is_trained_as_a_whole_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.tune.run.two_ranks"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[3]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet")], cwd=root, env=environment)
        for rank in (0, 1)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
