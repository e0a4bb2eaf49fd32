"""What a quantization has done, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from corral.quantizer.measures import LayerResult
from corral.quantizer.recipe import Recipe
from corral.quantizer.text_loss import Perplexities


@dataclass(frozen=True)
class QuantizeResult:
    """A quantization that is done.

    Attributes:
        model: what was quantized: its name on the Hub, or that of its folder or file.
        recipe: how.
        version: of Corral.
        texts: which texts were taken, as plain data.
        layers: what each layer costs.
        perplexities: before and after, where there was text to predict.
        num_bytes: of the tensors that were read, as 16-bit floats, and of those that were written.
    """

    model: str
    recipe: Recipe
    version: str
    texts: dict[str, Any]
    layers: Sequence[LayerResult]
    perplexities: Perplexities | None
    num_bytes: tuple[int, int]

    @property
    def measured_on(self) -> str:
        """What errors of matrices are those of."""
        return "outputs" if self.texts["calibration"] else "weights"

    @property
    def mean_error(self) -> float:
        """The mean of the errors of all matrices."""
        return fmean(matrix.error for layer in self.layers for matrix in layer.matrices)

    @property
    def mean_rtn_error(self) -> float | None:
        """The mean of the errors that the nearest numbers would have, where the method is another."""
        found = [m.rtn_error for layer in self.layers for m in layer.matrices if m.rtn_error is not None]
        return fmean(found) if found else None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        perplexities = None if self.perplexities is None else self.perplexities.to_dict()
        return {
            "model": self.model,
            "recipe": self.recipe.to_dict(),
            "corral": self.version,
            "texts": self.texts,
            "bytes": {"bfloat16": self.num_bytes[0], "quantized": self.num_bytes[1]},
            "perplexity": perplexities,
            "error_of": self.measured_on,
            "error": self.mean_error,
            "rtn_error": self.mean_rtn_error,
            "layers": [asdict(layer) for layer in self.layers],
        }
