"""What fits, what does not, and that the advice is true."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corral.errors import PlanError
from corral.model.config import LlamaConfig
from corral.model.presets import PRESETS
from corral.plan import Devices, Inference, Training, make_plan, parse_devices
from corral.plan.formats import KV_FORMATS, WEIGHT_FORMATS
from corral.plan.limits import longest_that_fits, total_bytes
from corral.plan.planner import Plan
from corral.plan.training import STATES
from corral.plan.workload import Workload

LLAMA_8B = PRESETS["llama-3.1-8b"].config
LLAMA_70B = PRESETS["llama-3.1-70b"].config
configs = st.sampled_from([preset.config for preset in PRESETS.values()])
gigabytes = st.integers(1, 2000).map(lambda size: parse_devices(f"{size}GB"))


@st.composite
def serving(draw: st.DrawFn, config: LlamaConfig) -> Inference:
    return Inference(
        context=draw(st.integers(1, config.max_position_embeddings)),
        batch=draw(st.integers(1, 64)),
        dtype=draw(st.sampled_from([None, *WEIGHT_FORMATS])),
        kv_dtype=draw(st.sampled_from([None, *KV_FORMATS])),
        prefill_chunk=draw(st.integers(1, 8192)),
    )


@st.composite
def training(draw: st.DrawFn, config: LlamaConfig) -> Training:
    return Training(
        method=draw(st.sampled_from(["full", "lora", "qlora"])),
        seq=draw(st.integers(1, config.max_position_embeddings)),
        batch=draw(st.integers(1, 16)),
        states=draw(st.sampled_from(list(STATES))),
        rank=draw(st.integers(1, 128)),
        checkpointing=draw(st.booleans()),
        loss_chunk=draw(st.none() | st.integers(1, 4096)),
    )


@st.composite
def work(draw: st.DrawFn) -> tuple[LlamaConfig, Workload]:
    config = draw(configs)
    return config, draw(serving(config) | training(config))


@given(work(), gigabytes)
def test_the_parts_add_up_and_the_verdict_follows(
    task: tuple[LlamaConfig, Workload], devices: Devices
) -> None:
    config, workload = task
    plan = make_plan(config, workload, devices)
    plain = plan.to_dict()
    assert sum(plain["per_device"].values()) == plain["total"] == plan.total
    assert plain["free"] == devices.usable - plan.total
    assert plain["fits"] == (plan.total <= devices.usable)
    assert json.loads(json.dumps(plain))["limits"] == {"length": plan.longest, "batch": plan.largest_batch}


@given(work(), st.data(), st.sampled_from([1, 2, 8]))
def test_more_length_or_batch_never_takes_less(
    task: tuple[LlamaConfig, Workload], data: st.DataObject, count: int
) -> None:
    config, workload = task
    devices = Devices("x", count, 2**40)
    longer = workload.resized(
        length=data.draw(st.integers(workload.length, config.max_position_embeddings)),
        batch=data.draw(st.integers(workload.batch, 100)),
    )
    assert total_bytes(config, longer, devices) >= total_bytes(config, workload, devices)


@given(work(), gigabytes)
def test_the_longest_that_fits_fits_and_one_token_more_does_not(
    task: tuple[LlamaConfig, Workload], devices: Devices
) -> None:
    config, workload = task
    longest = longest_that_fits(config, workload, devices)
    if longest:
        assert total_bytes(config, workload.resized(length=longest), devices) <= devices.usable
    if longest < config.max_position_embeddings:
        assert total_bytes(config, workload.resized(length=longest + 1), devices) > devices.usable


@given(work(), gigabytes)
def test_the_largest_batch_that_fits_fits_and_one_more_does_not(
    task: tuple[LlamaConfig, Workload], devices: Devices
) -> None:
    config, workload = task
    batch = make_plan(config, workload, devices).largest_batch
    if batch:
        assert total_bytes(config, workload.resized(batch=batch), devices) <= devices.usable
    assert total_bytes(config, workload.resized(batch=batch + 1), devices) > devices.usable


def obeyed(plan: Plan, text: str) -> Plan:
    """The plan made again with the flags of a suggestion, read as a user would type them."""
    fields = {"--kv-dtype": "kv_dtype", "--states": "states", "--train": "method", "--dtype": "dtype"}
    numbers = {"--context": "context", "--seq": "seq", "--batch": "batch", "--loss-chunk": "loss_chunk"}
    numbers["--prefill-chunk"] = "prefill_chunk"
    workload, devices, words = plan.workload, plan.devices, text.split()
    changes: dict[str, object] = {}
    while words:
        flag = words.pop(0)
        if flag == "--checkpointing":
            changes["checkpointing"] = True
        elif flag == "--devices":
            devices = parse_devices(words.pop(0), devices.reserve)
        elif flag in numbers:
            changes[numbers[flag]] = int(words.pop(0))
        else:
            changes[fields[flag]] = words.pop(0)
    changed = replace(workload, **changes)
    return make_plan(plan.config, changed, devices)


@settings(max_examples=200)
@given(work(), st.integers(1, 200), st.sampled_from([1, 2, 4]))
def test_every_suggestion_fits_when_it_is_obeyed(
    task: tuple[LlamaConfig, Workload], size: int, count: int
) -> None:
    config, workload = task
    devices = parse_devices(f"{count}x{size}GB")
    try:
        workload.check(config, count)
    except PlanError:
        return
    plan = make_plan(config, workload, devices)
    assert not (plan.fits and plan.suggestions)
    for suggestion in plan.suggestions:
        followed = obeyed(plan, suggestion.text)
        assert followed.fits, suggestion.text
        assert followed.total == suggestion.total


def test_an_8b_in_bfloat16_fits_24gb_with_a_context_of_60_thousand_tokens() -> None:
    plan = make_plan(LLAMA_8B, Inference(context=8192), parse_devices("24GB"))
    assert plan.fits
    assert 60_000 < plan.longest < 61_000
    assert plan.largest_batch == 7


def test_a_70b_on_one_80gb_device_is_told_what_helps() -> None:
    plan = make_plan(LLAMA_70B, Inference(context=8192), parse_devices("80GB"))
    assert not plan.fits
    assert [item.text for item in plan.suggestions] == ["--dtype int8", "--devices 2x80GB"]


def test_a_context_too_long_for_the_device_is_told_how_long_it_may_be() -> None:
    plan = make_plan(LLAMA_8B, Inference(context=131_072, batch=4), parse_devices("24GB"))
    flags = [item.text for item in plan.suggestions]
    assert f"--context {plan.longest}" in flags
    assert any(text.startswith("--dtype int4 --kv-dtype int8 --context ") for text in flags)


def test_full_training_of_8b_needs_8_bit_states_on_one_80gb_device() -> None:
    plan = make_plan(LLAMA_8B, Training("full", seq=2048), parse_devices("80GB"))
    assert not plan.fits
    assert [item.text for item in plan.suggestions][:2] == ["--states 8bit", "--train lora"]


def test_tensor_parallel_devices_share_kv_heads_until_there_is_one_on_each() -> None:
    request = Inference(context=1000)
    cache = {n: request.parts(LLAMA_8B, n)[1].bytes for n in (1, 2, 8, 16)}
    assert cache[1] == 2 * cache[2] == 8 * cache[8]
    assert cache[16] == cache[8]


def test_a_405b_in_bfloat16_does_not_fit_one_node_of_eight_but_in_fp8_does() -> None:
    config, node = PRESETS["llama-3.1-405b"].config, parse_devices("8x80GB")
    assert not make_plan(config, Inference(context=8192), node).fits
    assert make_plan(config, Inference(context=8192, dtype="fp8"), node).fits


@pytest.mark.parametrize(
    ("request_", "count", "words"),
    [
        (Inference(context=131_073), 1, "--context is 131073, but the model sees at most 131072 tokens"),
        (Inference(context=0), 1, "--context is 0; it must be at least 1"),
        (Inference(context=1, batch=0), 1, "--batch is 0; it must be at least 1"),
        (Inference(context=1, prefill_chunk=0), 1, "--prefill-chunk is 0"),
        (Inference(context=1, dtype="int3"), 1, "--dtype is 'int3'; use one of"),
        (Inference(context=1, kv_dtype="nf4"), 1, "--kv-dtype is 'nf4'; use one of"),
        (
            Inference(context=1),
            3,
            "3 devices cannot share 32 attention heads and 8 KV heads evenly; use 1, 2, 4",
        ),
    ],
)
def test_serving_that_makes_no_sense_is_refused_in_words(request_: Inference, count: int, words: str) -> None:
    with pytest.raises(PlanError) as refused:
        make_plan(LLAMA_8B, request_, Devices("x", count, 2**40))
    assert words in str(refused.value)
