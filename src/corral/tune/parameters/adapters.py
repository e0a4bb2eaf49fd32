"""Adapters beside a frozen model: LoRA (Hu et al., 2021, arXiv:2106.09685), DoRA, and trained biases."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import uuid4

import torch
from torch import Tensor, nn

from corral.checkpoints.adapter_config import AdapterConfig
from corral.checkpoints.adapter_reader import AdapterWeights, LowRank
from corral.model.llama import Llama
from corral.model.project import plain
from corral.tune.config import ParametersConfig
from corral.tune.errors import TuneError
from corral.tune.parameters.layer import LayerAdapter, device_of, new_pair
from corral.tune.parameters.targets import HEAD, LinearLayer, check_patterns, chosen, linear_layers


class Adapters(nn.Module):
    """The adapters of a model, and the `Project` that applies its linear layers with them.

    The model is no part of this module, and its weights do not change: without the adapters (`plain`) it is
    what it was before training, biases included. Parameters are named as in PEFT's files, without prefix and
    `.weight`: `model.layers.0.self_attn.q_proj.lora_A`. Dropout is active while the module is in training
    mode.

    Args:
        model: the network; it is frozen.
        weights: what to start from, by the names of the model's linear layers; it is copied.
        dtype: of the parameters; magnitudes are float32 always. None keeps those of `weights`.
    """

    def __init__(self, model: Llama, weights: AdapterWeights, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        model.requires_grad_(False)
        self.config = weights.config
        linears = linear_layers(model)
        self._linears = tuple(linears)
        # A layer of the network has what is beside it as an attribute of this name, which nothing else looks
        # at: by a table of layers, torch.compile would make a graph for each instead of one for all.
        self._attribute = f"adapter_{uuid4().hex}"
        self._by_name: dict[str, LayerAdapter] = {}
        for name, linear in linears.items():
            added, bias = weights.layers.get(name), weights.biases.get(name)
            if added is None and bias is None:
                continue
            device = device_of(linear)
            layer = LayerAdapter(
                added and _placed(added, device, dtype),
                None if bias is None else bias.to(device, dtype, copy=True),
                weights.config.dropout,
            )
            self._by_name[name] = vars(linear)[self._attribute] = layer
            _add(self, name, layer)

    @classmethod
    def new(
        cls,
        model: Llama,
        config: ParametersConfig,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> Adapters:
        """Adapters that change nothing yet, drawn from a generator of the CPU: the same on every device.

        Raises:
            TuneError: a target or pattern means no layer, or biases are to be trained and there are none.
        """
        linears = linear_layers(model)
        names = chosen(config.targets, tuple(linears))
        check_patterns("rank_pattern", config.rank_pattern, names)
        check_patterns("alpha_pattern", config.alpha_pattern, names)
        settings = _settings(config)
        layers = {
            name: new_pair(
                linears[name],
                settings.rank_of(name),
                settings.scale_of(name),
                generator,
                dtype,
                model.dtype if settings.use_dora else None,
            )
            for name in names
        }
        return cls(model, AdapterWeights(settings, layers, _biases(settings, linears, names)), dtype)

    def forward(self, linear: nn.Module, x: Tensor) -> Tensor:
        """Applies a linear layer of the model, and what is trained beside it, to x [T, in]: [T, out]."""
        layer = getattr(linear, self._attribute, None)
        if layer is None:
            return plain(linear, x)
        output: Tensor = layer(linear, x)
        return output

    @property
    def adapts_head(self) -> bool:
        """Whether something is added to the head."""
        return HEAD in self._by_name

    @property
    def num_parameters(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def linears(self) -> tuple[str, ...]:
        """The names of all linear layers of the model, adapted or not."""
        return self._linears

    def weights(self) -> AdapterWeights:
        """The adapters as they are, by the names of the layers; the tensors are no copies."""
        layers = {name: layer.added for name, layer in self._by_name.items()}
        biases = {name: layer.bias for name, layer in self._by_name.items()}
        return AdapterWeights(
            self.config,
            {name: added for name, added in layers.items() if added is not None},
            {name: bias for name, bias in biases.items() if bias is not None},
        )


def _settings(config: ParametersConfig) -> AdapterConfig:
    return AdapterConfig(
        rank=config.rank,
        alpha=config.alpha,
        use_rslora=config.rslora,
        rank_pattern=tuple(config.rank_pattern.items()),
        alpha_pattern=tuple(config.alpha_pattern.items()),
        use_dora=config.method == "dora",
        bias=config.bias,
        dropout=config.dropout,
    )


def _biases(
    settings: AdapterConfig, linears: Mapping[str, LinearLayer], adapted: list[str]
) -> dict[str, Tensor]:
    if settings.bias == "none":
        return {}
    names = adapted if settings.bias == "lora_only" else list(linears)
    biases = {name: linears[name].bias for name in names}
    found = {name: bias.detach() for name, bias in biases.items() if bias is not None}
    if not found:
        raise TuneError(
            f"parameters.bias is {settings.bias!r}, but none of {len(names)} layers has a bias; leave it out"
        )
    return found


def _placed(added: LowRank, device: torch.device, dtype: torch.dtype | None) -> LowRank:
    magnitude = None if added.magnitude is None else added.magnitude.to(device, torch.float32, copy=True)
    a, b = (half.to(device, dtype, copy=True).contiguous() for half in (added.a, added.b))
    return LowRank(a, b, added.scale, magnitude)


def _add(root: nn.Module, name: str, layer: LayerAdapter) -> None:
    """Puts a module at a name with dots, in modules that hold nothing else."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(leaf, layer)
