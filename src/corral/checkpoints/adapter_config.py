"""PEFT's adapter_config.json: what decides what an adapter adds, and a word about all else."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

from corral.checkpoints.checkpoint import read_json
from corral.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"

MERGE = "merge the adapter into its model (`corral merge`) and run the result"
MERGE_BY_PEFT = "merge the adapter into its model (PEFT's merge_and_unload) and use the result"
_WITHOUT = "train the adapter without it"

# The fields of PEFT 0.21's LoraConfig. Corral honours the first, and refuses the second where they are set
# (what `_BESIDE_LORA` names, only where the model runs); the third are settings of what is refused, or say
# how the adapter was trained.
USED = frozenset(
    {
        *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
        *("bias", "init_lora_weights", "lora_dropout"),
    }
)
REFUSED: Mapping[str, tuple[str, str]] = {
    "use_dora": ("DoRA rescales whole weights", MERGE),
    "modules_to_save": ("whole layers come with the adapter", MERGE_BY_PEFT),
    "lora_bias": ("a bias comes with each layer", MERGE_BY_PEFT),
    "fan_in_fan_out": ("it is for models that store their weights transposed", _WITHOUT),
    "trainable_token_indices": ("rows of the embedding come with the adapter", MERGE_BY_PEFT),
    "target_parameters": ("it changes parameters that are not linear layers", MERGE_BY_PEFT),
    "layer_replication": ("it makes another network out of the model's layers", MERGE_BY_PEFT),
    "megatron_config": ("it is for layers that Megatron splits", MERGE_BY_PEFT),
    "velora_config": ("VeLoRA is not plain LoRA", MERGE_BY_PEFT),
    "kasa_config": ("KaSA changes the model's own weights", MERGE_BY_PEFT),
    "use_bdlora": ("BD-LoRA's weights are blocks of matrices", MERGE_BY_PEFT),
    "use_qalora": ("QA-LoRA pools the input of each layer", _WITHOUT),
    "alora_invocation_tokens": ("Activated LoRA works only after certain tokens", _WITHOUT),
    "monteclora_config": ("Monte Carlo LoRA draws its weights at random", _WITHOUT),
    "arrow_config": ("Arrow chooses among adapters for each token", _WITHOUT),
}
HARMLESS = frozenset(
    {
        *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"),
        *("inference_mode", "ensure_weight_tying", "megatron_core", "qalora_group_size"),
    }
)
_BESIDE_LORA = ("use_dora",)
BIASES = ("none", "lora_only", "all")
# These starts leave the model's own weights as they are; the others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA)
# subtract the adapter's start from them, so that the adapter fits only the changed weights.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class AdapterConfig:
    """The fields that decide what an adapter adds, and how it is trained.

    The patterns are pairs of a regular expression, which must fit the end of a module's name or the whole of
    it, and the value for such modules; the first that fits counts (PEFT's peft.utils.other.get_pattern_key).

    Attributes:
        use_dora: each row of an adapted weight is brought to a length of its own (Liu et al., 2024,
            arXiv:2402.09353).
        bias: which biases of the model come with the adapter, one of `BIASES`.
        dropout: of the adapter's input in training.
    """

    rank: int
    alpha: float
    use_rslora: bool = False
    rank_pattern: tuple[tuple[str, float], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    use_dora: bool = False
    bias: str = "none"
    dropout: float = 0.0

    @classmethod
    def read(cls, file: Path, *, plain: bool = True) -> AdapterConfig:
        """Reads an adapter_config.json.

        `plain` takes nothing but LoRA, which is what the engine adds to a model that runs; without it DoRA
        and biases are taken too.

        Raises:
            CheckpointError: the file is missing or damaged, a field is of the wrong type, or the adapter is
                something else; the message names the field.
        """
        fields = read_json(file)
        _require_lora(file, fields, plain)
        return cls(
            rank=_rank(file, "r", fields.get("r", 8)),  # PEFT's default
            alpha=_number(file, "lora_alpha", fields.get("lora_alpha", 8)),  # PEFT's default
            use_rslora=_truth(file, "use_rslora", fields),
            rank_pattern=_patterns(file, "rank_pattern", fields, _rank),
            alpha_pattern=_patterns(file, "alpha_pattern", fields, _number),
            use_dora=_truth(file, "use_dora", fields),
            bias=fields.get("bias") or "none",
            dropout=_dropout(file, fields.get("lora_dropout") or 0.0),
        )

    def rank_of(self, module: str) -> int:
        """The rank that the module's pair of matrices must have."""
        return int(_first_fit(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """The factor before the module's product of matrices: lora_alpha / r.

        Rank-stabilized LoRA (Kalajdzievski, 2023, arXiv:2312.03732) divides by the root of r instead.
        """
        rank = self.rank_of(module)
        alpha = _first_fit(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def pattern(key: str) -> re.Pattern[str]:
    """What a key of `rank_pattern` or `alpha_pattern` fits: the end of a module's name, or the whole.

    Raises:
        re.error, RecursionError or OverflowError: it is no regular expression.
    """
    return re.compile(rf"(.*\.)?({key})$")


def _first_fit(patterns: tuple[tuple[str, float], ...], module: str, default: float) -> float:
    return next((value for key, value in patterns if pattern(key).match(module)), default)


def _require_lora(file: Path, fields: Mapping[str, Any], plain: bool) -> None:
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{file}: peft_type is {short(kind)}; Corral knows adapters of type LORA")
    known = USED | REFUSED.keys() | HARMLESS
    for name, value in fields.items():
        if name in REFUSED and value and (plain or name not in _BESIDE_LORA):
            why, remedy = REFUSED[name]
            raise CheckpointError(f"{file}: {name} is {short(value)}: {why}; {remedy}")
        if name not in known and _is_switch(value):
            raise CheckpointError(
                f"{file}: {name} is {short(value)}, and Corral does not know what it does; {MERGE_BY_PEFT}"
            )
    bias = fields.get("bias") or "none"
    if bias not in BIASES:
        raise _wrong(file, "bias", bias, "none, lora_only or all")
    if plain and bias != "none":
        raise CheckpointError(
            f"{file}: bias is {short(bias)}: biases of the model come with the adapter; {MERGE}"
        )
    start = fields.get("init_lora_weights")
    if (start.lower() if isinstance(start, str) else start) not in _PLAIN_STARTS:
        raise CheckpointError(
            f"{file}: init_lora_weights is {short(start)}: the adapter fits only the weights that its "
            "training changed at the start; save it with path_initial_model_for_weight_conversion (PEFT)"
        )


def _is_switch(value: Any) -> bool:
    """Whether a field that nobody here knows turns something on, rather than noting a number or a text."""
    return value is True or (isinstance(value, list | dict) and bool(value))


def _patterns(
    file: Path, name: str, fields: Mapping[str, Any], check: Callable[[Path, str, Any], float]
) -> tuple[tuple[str, float], ...]:
    table = fields.get(name) or {}
    if not isinstance(table, dict):
        raise _wrong(file, name, table, "an object of names and numbers")
    for key in table:
        try:
            pattern(key)
        except (re.error, RecursionError, OverflowError):
            raise CheckpointError(
                f"{file}: {name} has the key {key!r}, which is no regular expression"
            ) from None
    return tuple((key, check(file, f"{name}[{key!r}]", value)) for key, value in table.items())


def _truth(file: Path, name: str, fields: Mapping[str, Any]) -> bool:
    value = fields.get(name) or False
    if not isinstance(value, bool):
        raise _wrong(file, name, value, "true or false")
    return value


def _rank(file: Path, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong(file, name, value, "a whole number of at least 1")
    return value


def _number(file: Path, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        raise _wrong(file, name, value, "a number")
    return float(value)


def _dropout(file: Path, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise _wrong(file, "lora_dropout", value, "a number from 0 to below 1")
    return float(value)


def _wrong(file: Path, name: str, value: Any, wanted: str) -> CheckpointError:
    return CheckpointError(f"{file}: {name} is {short(value)}; it must be {wanted}")
