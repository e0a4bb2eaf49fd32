"""compressed-tensors' `quantization_config`: groups of modules, each with a scheme."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from corral.errors import ConfigError
from corral.quant.encodings.modules import module_class, names_module
from corral.quant.encodings.settings import Fields
from corral.quant.float8 import Activations

_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
_STRATEGIES = ("tensor", "channel", "group", "block")
_WITHOUT_EFFECT = (
    "quant_method quantization_status global_compression_ratio kv_cache_scheme run_compressed dequantize "
    "use_optimized_inference version"
)


@dataclass(frozen=True)
class Scheme:
    """How the weights of a group of modules are stored.

    Attributes:
        bits: of a code.
        kind: what codes are.
        strategy: what shares a scale.
        symmetric: whether there are no zero points.
        group_size: columns that share a scale, or None for all of them.
        block: rows and columns of a block, with the strategy "block".
        in_activation_order: whether groups are formed of columns in the order of their activations.
        activations: as in `Float8`.
    """

    bits: int
    kind: Literal["int", "float"]
    strategy: Literal["tensor", "channel", "group", "block"]
    symmetric: bool = True
    group_size: int | None = None
    block: tuple[int, int] | None = None
    in_activation_order: bool = False
    activations: Activations = "none"

    @property
    def format(self) -> str:
        """The name of the layout in which the library writes such weights."""
        if self.kind == "float":
            return "float-quantized"
        return "pack-quantized" if self.activations == "none" else "int-quantized"

    def to_hf(self) -> dict[str, object]:
        """The `weights` and `input_activations` of a group."""
        weights: dict[str, object] = {
            "num_bits": self.bits,
            "type": self.kind,
            "symmetric": self.symmetric,
            "strategy": self.strategy,
            "dynamic": False,
        }
        if self.group_size is not None:
            weights["group_size"] = self.group_size
        if self.block is not None:
            weights["block_structure"] = list(self.block)
        if self.in_activation_order:
            weights["actorder"] = "group"
        inputs: dict[str, object] | None = None
        if self.activations != "none":
            strategy = "tensor" if self.activations == "static" else self.activations
            inputs = {
                "num_bits": 8,
                "type": self.kind,
                "symmetric": True,
                "strategy": strategy,
                "dynamic": self.activations != "static",
            }
            if self.activations == "group":
                inputs["group_size"] = 128
        return {"weights": weights, "input_activations": inputs, "output_activations": None}


@dataclass(frozen=True)
class CompressedTensorsSettings:
    """Schemes with the targets that each is for, and what is left out of all of them."""

    groups: tuple[tuple[tuple[str, ...], Scheme], ...]
    ignore: tuple[str, ...] = ()

    @classmethod
    def read(cls, fields: Fields) -> CompressedTensorsSettings:
        """Reads a `quantization_config`.

        Raises:
            ConfigError: a format, a strategy or a setting that Corral does not read.
        """
        among = (*_FORMATS, "mixed-precision", "dense")
        fields.choice("format", among=among, default="pack-quantized")
        for name in ("transform_config", "moe_sparsity_config"):
            fields.refuse(name)
        _check_dense(fields)
        groups = fields.objects("config_groups")
        if not groups:
            raise ConfigError(f"{fields.where}.config_groups is missing")
        read = tuple(
            _read_group(group, f"{fields.where}.config_groups.{name}") for name, group in groups.items()
        )
        settings = cls(tuple(group for group in read if group is not None), fields.names("ignore"))
        fields.close(_WITHOUT_EFFECT)
        return settings

    def is_left_out(self, module: str) -> bool:
        """Whether `ignore` names a module, or its class."""
        return any(names_module(p, module) or p == module_class(module) for p in self.ignore)

    def scheme(self, module: str) -> Scheme | None:
        """The scheme whose target names a module: by name, else by pattern, else by class."""
        targets = {target: scheme for names, scheme in self.groups for target in names}
        rising = sorted(targets, key=lambda target: (target.startswith("re:"), target))
        found = [t for t in rising if names_module(t, module)]
        found += [t for t in rising if t == module_class(module)]
        return targets[found[0]] if found else None

    def to_hf(self) -> dict[str, object]:
        """The `quantization_config` that transformers and vLLM read."""
        formats = {scheme.format for _, scheme in self.groups}
        groups: dict[str, object] = {
            f"group_{i}": {"targets": list(targets), **scheme.to_hf(), "format": scheme.format}
            for i, (targets, scheme) in enumerate(self.groups)
        }
        return {
            "quant_method": "compressed-tensors",
            "format": formats.pop() if len(formats) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": list(self.ignore),
            "kv_cache_scheme": None,
        }


def _read_group(group: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], Scheme] | None:
    fields = Fields(group, where)
    targets, weights = fields.names("targets"), fields.value("weights")
    fields.choice("format", among=(*_FORMATS, "dense"), default="pack-quantized")
    inputs = fields.value("input_activations")
    fields.close("output_activations")
    if weights is None:
        return None
    for name, value in (("weights", weights), ("input_activations", inputs or {})):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}.{name} is {value!r}; it must be an object")
    return targets, _read_scheme(Fields(weights, f"{where}.weights"), Fields(inputs or {}, f"{where}.inputs"))


def _read_scheme(fields: Fields, inputs: Fields) -> Scheme:
    kind = fields.choice("type", among=("int", "float"), default="int")
    bits = fields.choice("num_bits", among=(8,) if kind == "float" else tuple(range(1, 9)), default=8)
    size = None if fields.value("group_size") is None else fields.group_size("group_size")
    default = "channel" if fields.value("group_size") == -1 else "tensor" if size is None else "group"
    strategy = fields.choice("strategy", among=_STRATEGIES, default=default)
    symmetric = fields.flag("symmetric", default=True)
    block = fields.value("block_structure")
    fields.refuse("dynamic")
    order = fields.choice(
        "actorder", among=(True, False, "group", "weight", "static", "dynamic"), default=False
    )
    fields.close("observer observer_kwargs scale_dtype zp_dtype")
    if (kind == "float" and (strategy == "group" or not symmetric)) or (
        kind == "int" and strategy == "block"
    ):
        raise ConfigError(f"{fields.where}.strategy is {strategy!r}, which Corral does not read for {kind}s")
    if (strategy == "group") != (size is not None):
        raise ConfigError(f"{fields.where}.group_size and strategy {strategy!r} do not go together")
    if strategy == "block":
        block = _block(block, fields.where)
    return Scheme(
        bits,
        kind,
        strategy,
        symmetric,
        size,
        block if strategy == "block" else None,
        order in (True, "group", "dynamic"),
        _activations(inputs),
    )


def _activations(fields: Fields) -> Activations:
    """How activations are rounded, which runs nothing here: 16 bits lose less."""
    strategy, dynamic = fields.value("strategy"), fields.value("dynamic")
    if fields.value("num_bits") is None:
        return "none"
    if not dynamic:
        return "static"
    named: tuple[Activations, ...] = ("token", "group")
    return next((kind for kind in named if kind == strategy), "tensor")


def _block(value: Any, where: str) -> tuple[int, int]:
    sizes = value.split("x") if isinstance(value, str) else value
    try:
        rows, columns = (int(size) for size in sizes)
    except (TypeError, ValueError):
        rows = columns = 0
    if min(rows, columns) < 1:
        raise ConfigError(f"{where}.block_structure is {value!r}; it must be the rows and columns of a block")
    return rows, columns


def _check_dense(fields: Fields) -> None:
    """Weights with zeros left out have a layout of their own, which old versions of the library wrote."""
    sparsity = fields.value("sparsity_config") or {}
    kind = sparsity.get("format", "dense") if isinstance(sparsity, dict) else sparsity
    if kind != "dense":
        raise ConfigError(f"{fields.where}.sparsity_config.format is {kind!r}, which Corral does not read")
