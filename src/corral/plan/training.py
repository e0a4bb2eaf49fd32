"""The memory of training a model: weights, gradients, optimizer states and activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from corral.errors import PlanError
from corral.model.config import LlamaConfig
from corral.plan.activations import dequantized_workspace, training_bytes
from corral.plan.formats import WeightFormat, largest_unit_bytes, weight_bytes, weight_format
from corral.plan.shapes import LINEARS, lora_parameters
from corral.plan.workload import Part, check_at_least_one, check_length, divide_up

METHODS = ("full", "lora", "qlora")
_LOSS_CHUNK = 256  # tokens, as suggested: past this the logits are no longer the peak


@dataclass(frozen=True)
class TrainingStates:
    """Bytes that AdamW training keeps for each trained parameter.

    `master` is a float32 copy of the weight, where there is one; `moments` covers both moments. With
    `block_size`, each block of each moment has a float32 scale.
    """

    name: str
    weight: int
    gradient: int
    master: int
    moments: int
    block_size: int | None = None

    def optimizer_bytes(self, parameters: int) -> int:
        """Bytes of master weights and moments, scales included."""
        scales = 2 * 4 * divide_up(parameters, self.block_size) if self.block_size else 0
        return parameters * (self.master + self.moments) + scales


STATES: Mapping[str, TrainingStates] = {
    states.name: states
    for states in (
        TrainingStates("mixed", weight=2, gradient=2, master=4, moments=8),
        TrainingStates("bf16", weight=2, gradient=2, master=0, moments=4),
        TrainingStates("8bit", weight=2, gradient=2, master=0, moments=2, block_size=256),
        TrainingStates("float32", weight=4, gradient=4, master=0, moments=8),
    )
}


@dataclass(frozen=True)
class Training:
    """One step of AdamW over `batch` sequences of `seq` tokens on each device, before the step accumulates.

    `method` is full, lora or qlora. `states` names the precision of what is trained: all weights, or the
    adapters of `rank` at the `targets` of each layer. The frozen base under lora is in `dtype` (None: the
    model's own), under qlora in nf4. Several devices shard weights, gradients and states (FSDP, ZeRO-3).
    """

    method: str
    seq: int
    batch: int = 1
    states: str = "mixed"
    dtype: str | None = None
    rank: int = 16
    targets: tuple[str, ...] = LINEARS
    checkpointing: bool = True
    loss_chunk: int | None = None

    @property
    def length(self) -> int:
        return self.seq

    @property
    def length_flag(self) -> str:
        return "--seq"

    def resized(self, *, length: int | None = None, batch: int | None = None) -> Training:
        return replace(self, seq=length or self.seq, batch=batch or self.batch)

    def resolved(self, config: LlamaConfig) -> Training:
        return replace(self, dtype=self.base(config).name)

    def check(self, config: LlamaConfig, devices: int) -> None:
        if self.method not in METHODS:
            raise PlanError(f"--train is {self.method!r}; use one of {', '.join(METHODS)}")
        if self.states not in STATES:
            raise PlanError(f"--states is {self.states!r}; use one of {', '.join(STATES)}")
        check_at_least_one("--batch", self.batch)
        check_at_least_one("--lora-rank", self.rank)
        check_length(config, self.seq, "--seq")
        if self.loss_chunk is not None:
            check_at_least_one("--loss-chunk", self.loss_chunk)
        unknown = [target for target in self.targets if target not in LINEARS]
        if unknown or not self.targets:
            raise PlanError(
                f"--lora-targets names {', '.join(unknown) or 'nothing'}; use some of {', '.join(LINEARS)}"
            )
        self._check_dtype(config)

    def _check_dtype(self, config: LlamaConfig) -> None:
        form = self.base(config)
        if self.method == "qlora" and form.name != "nf4":
            raise PlanError(
                f"--dtype is {self.dtype!r}, but --train qlora keeps the base in nf4; leave it out"
            )
        if self.method == "lora" and form.quantized:
            raise PlanError(
                f"--dtype is {self.dtype!r}; the base of --train lora is float32, bfloat16 or float16. "
                "Use --train qlora for a 4-bit base"
            )
        if self.method == "full" and form.bits != 8 * STATES[self.states].weight:
            raise PlanError(
                f"--dtype is {self.dtype!r}, but --states {self.states} keeps weights of "
                f"{8 * STATES[self.states].weight} bits; leave --dtype out"
            )

    def base(self, config: LlamaConfig) -> WeightFormat:
        """The format of the model's own weights."""
        if self.dtype is not None:
            return weight_format(self.dtype)
        if self.method == "full":
            return weight_format("float32" if STATES[self.states].weight == 4 else "bfloat16")
        return weight_format("nf4" if self.method == "qlora" else config.dtype)

    def trained_parameters(self, config: LlamaConfig) -> int:
        """Parameters that get gradients."""
        if self.method == "full":
            return config.num_parameters
        return lora_parameters(config, self.rank, self.targets)

    def parts(self, config: LlamaConfig, devices: int) -> tuple[Part, ...]:
        states, form, trained = STATES[self.states], self.base(config), self.trained_parameters(config)
        parts = [Part("weights", divide_up(weight_bytes(config, form).total, devices), form.name)]
        if self.method != "full":
            adapters = divide_up(trained * states.weight, devices)
            parts.append(Part("adapters", adapters, f"{trained:,} parameters, rank {self.rank}"))
        optimizer = divide_up(states.optimizer_bytes(trained), devices)
        parts += [
            Part("gradients", divide_up(trained * states.gradient, devices), f"{states.gradient} bytes each"),
            Part("optimizer_states", optimizer, f"AdamW, {states.name}"),
            Part("activations", self._activations(config, form), self._activations_note()),
        ]
        if devices > 1:
            parts.append(Part("gathered_weights", self._gathered(config, form), "layers, whole while in use"))
        return tuple(parts)

    def _activations(self, config: LlamaConfig, form: WeightFormat) -> int:
        tokens = self.batch * self.seq
        peak = training_bytes(
            config, tokens, form.width, checkpointing=self.checkpointing, loss_chunk=self.loss_chunk
        )
        return peak + (dequantized_workspace(config) if form.quantized else 0)

    def _activations_note(self) -> str:
        kept = "layer inputs kept" if self.checkpointing else "everything kept"
        loss = f"loss by {self.loss_chunk} tokens" if self.loss_chunk else "all logits at once"
        return f"{self.batch} x {self.seq:,} tokens, {kept}, {loss}"

    def _gathered(self, config: LlamaConfig, form: WeightFormat) -> int:
        """The piece in use and the next, fetched ahead; in full training also the gradient of the first."""
        copies = 3 if self.method == "full" else 2
        return copies * largest_unit_bytes(config, form)

    def savings(self, config: LlamaConfig) -> Iterator[tuple[Mapping[str, str], Training]]:
        for flags, changed in self._other_methods(config):
            yield from ((flags | more, leaner) for more, leaner in changed._lighter_passes())

    def _other_methods(self, config: LlamaConfig) -> Iterator[tuple[dict[str, str], Training]]:
        yield {}, self
        if self.method == "full" and self.states != "8bit":
            yield {"--states": "8bit"}, replace(self, states="8bit", dtype=None)
        if self.method == "lora" and self.base(config).name == "float32":
            yield {"--dtype": "bfloat16"}, replace(self, dtype="bfloat16")
        for method in METHODS[METHODS.index(self.method) + 1 :]:
            yield {"--train": method}, replace(self, method=method, dtype=None)

    def _lighter_passes(self) -> Iterator[tuple[dict[str, str], Training]]:
        """This and the cheaper ways to run the same forward and backward pass."""
        yield {}, self
        if not self.checkpointing:
            yield {"--checkpointing": ""}, replace(self, checkpointing=True)
        if self.loss_chunk is None and self.batch * self.seq > _LOSS_CHUNK:
            yield {"--loss-chunk": str(_LOSS_CHUNK)}, replace(self, loss_chunk=_LOSS_CHUNK)
            if not self.checkpointing:
                both = replace(self, checkpointing=True, loss_chunk=_LOSS_CHUNK)
                yield {"--checkpointing": "", "--loss-chunk": str(_LOSS_CHUNK)}, both
