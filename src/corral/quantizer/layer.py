"""One layer: its linear layers are quantized stage by stage, each on what the stages before give it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from corral.model.llama import Layer
from corral.quant import NF4, Codebook, Float8
from corral.quant.algorithms.awq import clip_search
from corral.quant.algorithms.gptq import GptqOptions, gptq
from corral.quant.algorithms.grid import round_to_nearest
from corral.quant.float8 import LARGEST
from corral.quantizer.awq_layer import Factors, scale_layer
from corral.quantizer.formats import Family, plain_dtype, scale_dtype
from corral.quantizer.layers import STAGES, Windows, linear_of
from corral.quantizer.measures import Inputs, LayerCheck, LayerResult, MatrixResult, matrix_error, unscaled
from corral.quantizer.recipe import Recipe

_NEVER_CLIPPED = ("self_attn.q_proj", "self_attn.k_proj")  # what is cut off there weighs in every product


class LayerQuantizer:
    """Quantizes layers by a recipe.

    Args:
        recipe: how.
        stored: the type of the checkpoint's weights.
        takes: whether the matrix of a module, by its whole name, is quantized.
        progress: called after each matrix that is.
    """

    def __init__(
        self,
        recipe: Recipe,
        stored: torch.dtype,
        takes: Callable[[str], bool],
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self.recipe, self._takes, self._progress = recipe, takes, progress
        self.dtype, self._scale_dtype = plain_dtype(recipe, stored), scale_dtype(recipe, stored)

    def quantize(
        self, layer: Layer, prefix: str, windows: Windows | None
    ) -> tuple[dict[str, Family], LayerResult]:
        """The weights of a layer's linear layers by their names within it.

        Afterwards the layer, which computes in float32, has exactly the numbers that are written.

        Args:
            layer: with its own weights.
            prefix: of its names, such as "model.layers.3.".
            windows: of calibration text, as they enter the layer; they stay as they are.

        Raises:
            ValueError: a weight holds what is not finite; the message begins with its name.
        """
        taken = [name for stage in STAGES for name in stage if self._takes(prefix + name)]
        for name in taken:
            if not bool(torch.isfinite(linear_of(layer, name).weight).all()):
                raise ValueError(f"{prefix}{name}.weight holds values that are not finite")
        check = None if windows is None else LayerCheck(layer, windows)
        result = LayerResult()
        factors = {name: Factors.none(linear_of(layer, name).weight) for name in taken}
        if self.recipe.method == "awq" and taken:
            assert windows is not None, "awq needs text"
            scaled, searches = scale_layer(
                layer, windows, taken, self.recipe.group_size, self._rounded, self.dtype
            )
            factors.update(scaled)
            result.searches.extend(searches)
        weights: dict[str, Family] = {}
        for stage in STAGES:
            names = [name for name in stage if name in taken]
            inputs = Inputs(windows, layer, names[0]) if windows is not None and names else None
            for name in names:
                try:
                    weights[name], matrix = self._linear(layer, name, inputs, factors[name])
                except ValueError as error:
                    raise ValueError(f"{prefix}{name}.weight cannot be quantized: {error}") from None
                result.matrices.append(matrix)
                self._progress()
        for name, parameter in layer.named_parameters():
            if name.removesuffix(".weight") not in weights:
                parameter.data = parameter.data.to(self.dtype).float()
        return weights, result if check is None else replace(result, error=check.error(layer))

    def _linear(
        self, layer: Layer, name: str, inputs: Inputs | None, factors: Factors
    ) -> tuple[Family, MatrixResult]:
        linear = linear_of(layer, name)
        before = linear.weight.data
        weight = self._quantized(name, before, inputs)
        linear.weight.data = weight.dequantize()
        error = matrix_error(before, linear.weight.data, inputs, factors)
        if self.recipe.method not in ("awq", "gptq"):
            return weight, MatrixResult(name, error)
        plain = unscaled(before, factors)
        columns = factors.columns  # by which the inputs were divided
        nearest = matrix_error(plain * columns, self._rounded(plain) * columns, inputs, Factors.none(plain))
        return weight, MatrixResult(name, error, nearest)

    def _quantized(self, name: str, weight: Tensor, inputs: Inputs | None) -> Family:
        recipe = self.recipe
        match recipe.method:
            case "fp8":
                return self._float8(weight, inputs)
            case "gptq":
                assert inputs is not None, "gptq needs text"
                return gptq(
                    weight,
                    inputs.hessian,
                    recipe.bits,
                    recipe.group_size or weight.shape[1],
                    symmetric=recipe.symmetric,
                    scale_dtype=self._scale_dtype,
                    options=GptqOptions(search=recipe.search),
                )
            case "awq" if name not in _NEVER_CLIPPED:
                assert inputs is not None, "awq needs text"
                size = recipe.group_size or weight.shape[1]
                return self._nearest(clip_search(weight, inputs.sample, size, self._rounded))
            case _:
                return self._nearest(weight)

    def _float8(self, weight: Tensor, inputs: Inputs | None) -> Float8:
        recipe = self.recipe
        block = recipe.block or (None if recipe.preset == "static" else (1, weight.shape[1]))
        found = Float8.quantize(weight, block, self._scale_dtype)
        static = None
        if recipe.activations == "static":
            assert inputs is not None, "static scales need text"
            static = float(torch.tensor(inputs.largest / LARGEST).to(self._scale_dtype))
        return replace(
            found,
            activations=recipe.activations,
            activation_bound=recipe.activation_bound,
            activation_scale=static,
        )

    def _nearest(self, weight: Tensor) -> Family:
        recipe = self.recipe
        size = recipe.group_size or weight.shape[1]
        if recipe.format == "bitsandbytes":
            return Codebook.quantize(weight, size, NF4)
        return round_to_nearest(
            weight,
            recipe.bits,
            size,
            symmetric=recipe.symmetric,
            search=recipe.search,
            scale_dtype=self._scale_dtype,
        )

    def _rounded(self, weight: Tensor) -> Tensor:
        return self._nearest(weight).dequantize()
