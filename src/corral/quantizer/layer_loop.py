"""The way through all layers: each is read, quantized, kept, and let go of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from corral.errors import CheckpointError
from corral.model.llama import Layer
from corral.quantizer.formats import Family, decode, encode, plain_dtype, quantization_config
from corral.quantizer.layer import LayerQuantizer
from corral.quantizer.layers import LayerReader, Windows
from corral.quantizer.measures import LayerResult
from corral.quantizer.recipe import Recipe
from corral.quantizer.text_loss import Perplexities, TextLoss
from corral.quantizer.work import Tokens, Work


class LayerLoop:
    """Quantizes the layers of a network by a recipe.

    Args:
        reader: of the network.
        recipe: how.
        stored: the type of the checkpoint's weights.
        work: where finished layers are kept.
        progress: told how many matrices of how many are done.
    """

    def __init__(
        self,
        reader: LayerReader,
        recipe: Recipe,
        stored: torch.dtype,
        work: Work,
        progress: Callable[[int, int], None],
    ) -> None:
        self._reader, self._recipe, self._work, self._progress = reader, recipe, work, progress
        self._dtype = plain_dtype(recipe, stored)
        config = reader.config
        matrices = list(reader.matrices())
        self.taken = frozenset(name for name in matrices if recipe.takes(name, config))
        self.left_out = [name for name in matrices if name not in self.taken]
        self.config = quantization_config(recipe, [*self.left_out, "lm_head"])
        self._done = 0
        self._quantizer = LayerQuantizer(recipe, stored, self.taken.__contains__, self._count)

    def run(self, calibration: Tokens, evaluation: Tokens) -> tuple[list[LayerResult], Perplexities | None]:
        """What each layer costs, and the perplexity before and after; either text may be empty.

        Raises:
            CheckpointError: a tensor is missing, of a wrong shape, or not finite; the message names it.
        """
        windows = Windows.embed(calibration, self._reader) if calibration else None
        loss = TextLoss(evaluation, self._reader) if evaluation else None
        self._done = 0
        self._progress(0, len(self.taken))
        layers = [self._layer(i, windows, loss) for i in range(self._reader.config.num_hidden_layers)]
        return layers, None if loss is None else loss.perplexities()

    def weight(self, tensors: Mapping[str, Tensor], module: str) -> Family:
        """The weight of a module that was quantized, among the tensors of its layer."""
        parts = {
            name.removeprefix(f"{module}."): t for name, t in tensors.items() if name.startswith(f"{module}.")
        }
        return decode(module, parts, self.config)

    def _layer(self, index: int, windows: Windows | None, loss: TextLoss | None) -> LayerResult:
        prefix = f"model.layers.{index}."
        kept = self._work.finished(index)
        if kept is not None:
            self._count(sum(name.startswith(prefix) for name in self.taken))
            if windows is None and loss is None:
                return LayerResult.from_dict(kept[1])
        layer = self._reader.layer(index)
        if loss is not None:
            loss.before(layer)
        result = (
            self._quantized(layer, index, prefix, windows)
            if kept is None
            else self._again(layer, prefix, *kept)
        )
        if windows is not None and index + 1 < self._reader.config.num_hidden_layers:
            windows.run(layer)
        if loss is not None:
            loss.after(layer)
        return result

    def _quantized(self, layer: Layer, index: int, prefix: str, windows: Windows | None) -> LayerResult:
        try:
            weights, result = self._quantizer.quantize(layer, prefix, windows)
        except ValueError as error:
            raise CheckpointError(str(error)) from None
        tensors: dict[str, Tensor] = {}
        for name, parameter in layer.named_parameters():
            module = name.removesuffix(".weight")
            if module in weights:
                parts = encode(weights[module], self._recipe, self._dtype)
                tensors.update({f"{prefix}{module}.{part}": tensor.cpu() for part, tensor in parts.items()})
            else:
                tensors[prefix + name] = parameter.detach().to(self._dtype).cpu()
        self._work.finish(index, tensors, asdict(result))
        return result

    def _again(
        self, layer: Layer, prefix: str, tensors: Mapping[str, Tensor], result: dict[str, Any]
    ) -> LayerResult:
        """Puts what is finished into a layer."""
        for name, parameter in layer.named_parameters():
            module = name.removesuffix(".weight")
            if prefix + module in self.taken:
                parameter.data = self.weight(tensors, prefix + module).to(parameter.device).dequantize()
            else:
                parameter.data = tensors[prefix + name].to(parameter.device, torch.float32)
        return LayerResult.from_dict(result)

    def _count(self, matrices: int = 1) -> None:
        self._done += matrices
        self._progress(self._done, len(self.taken))
