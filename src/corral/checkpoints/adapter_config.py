"""PEFT's adapter_config.json: the scale of each layer, and a word about all that plain LoRA is not."""

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

_MERGE = "merge the adapter into its model (PEFT's merge_and_unload) and run the result"
_WITHOUT = "train the adapter without it"

# The fields of PEFT 0.21's LoraConfig. Corral honours the first, and refuses the second where they are set;
# the third say how the adapter was trained, or are settings of what is refused.
USED = frozenset(
    {
        *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
        *("bias", "init_lora_weights"),
    }
)
REFUSED: Mapping[str, tuple[str, str]] = {
    "use_dora": ("DoRA rescales whole weights", _MERGE),
    "modules_to_save": ("whole layers come with the adapter", _MERGE),
    "lora_bias": ("a bias comes with each layer", _MERGE),
    "fan_in_fan_out": ("it is for models that store their weights transposed", _WITHOUT),
    "trainable_token_indices": ("rows of the embedding come with the adapter", _MERGE),
    "target_parameters": ("it changes parameters that are not linear layers", _MERGE),
    "layer_replication": ("it makes another network out of the model's layers", _MERGE),
    "megatron_config": ("it is for layers that Megatron splits", _MERGE),
    "velora_config": ("VeLoRA is not plain LoRA", _MERGE),
    "kasa_config": ("KaSA changes the model's own weights", _MERGE),
    "use_bdlora": ("BD-LoRA's weights are blocks of matrices", _MERGE),
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
        *("inference_mode", "lora_dropout", "ensure_weight_tying", "megatron_core", "qalora_group_size"),
    }
)
# These starts leave the model's own weights as they are; the others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA)
# subtract the adapter's start from them, so that the adapter fits only the changed weights.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class AdapterConfig:
    """The fields that decide what a LoRA adapter adds.

    The patterns are pairs of a regular expression, which must fit the end of a module's name or the whole of
    it, and the value for such modules; the first that fits counts (PEFT's peft.utils.other.get_pattern_key).
    """

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: tuple[tuple[re.Pattern[str], float], ...]
    alpha_pattern: tuple[tuple[re.Pattern[str], float], ...]

    @classmethod
    def read(cls, file: Path) -> AdapterConfig:
        """Reads an adapter_config.json.

        Raises:
            CheckpointError: the file is missing or damaged, a field is of the wrong type, or the adapter is
                something other than plain LoRA; the message names the field.
        """
        fields = read_json(file)
        _require_plain_lora(file, fields)
        rslora = fields.get("use_rslora") or False
        if not isinstance(rslora, bool):
            raise _wrong(file, "use_rslora", rslora, "true or false")
        return cls(
            rank=_rank(file, "r", fields.get("r", 8)),  # PEFT's default
            alpha=_number(file, "lora_alpha", fields.get("lora_alpha", 8)),  # PEFT's default
            use_rslora=rslora,
            rank_pattern=_patterns(file, "rank_pattern", fields, _rank),
            alpha_pattern=_patterns(file, "alpha_pattern", fields, _number),
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


def _first_fit(patterns: tuple[tuple[re.Pattern[str], float], ...], module: str, default: float) -> float:
    return next((value for pattern, value in patterns if pattern.match(module)), default)


def _require_plain_lora(file: Path, fields: Mapping[str, Any]) -> None:
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{file}: peft_type is {short(kind)}; Corral runs adapters of type LORA")
    known = USED | REFUSED.keys() | HARMLESS
    for name, value in fields.items():
        if name in REFUSED and value:
            why, remedy = REFUSED[name]
            raise CheckpointError(f"{file}: {name} is {short(value)}: {why}; {remedy}")
        if name not in known and _is_switch(value):
            raise CheckpointError(
                f"{file}: {name} is {short(value)}, and Corral does not know what it does; {_MERGE}"
            )
    if fields.get("bias") not in (None, "none"):
        raise CheckpointError(
            f"{file}: bias is {short(fields['bias'])}: biases of the model come with the adapter; {_MERGE}"
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
) -> tuple[tuple[re.Pattern[str], float], ...]:
    table = fields.get(name) or {}
    if not isinstance(table, dict):
        raise _wrong(file, name, table, "an object of names and numbers")
    return tuple((_pattern(file, name, key), check(file, f"{name}[{key!r}]", table[key])) for key in table)


def _pattern(file: Path, name: str, key: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except (re.error, RecursionError, OverflowError):
        raise CheckpointError(f"{file}: {name} has the key {key!r}, which is no regular expression") from None


def _rank(file: Path, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong(file, name, value, "a whole number of at least 1")
    return value


def _number(file: Path, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        raise _wrong(file, name, value, "a number")
    return float(value)


def _wrong(file: Path, name: str, value: Any, wanted: str) -> CheckpointError:
    return CheckpointError(f"{file}: {name} is {short(value)}; it must be {wanted}")
