"""What a folder says of its quantized weights, whichever method wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from corral.errors import ConfigError
from corral.quant.affine import Affine
from corral.quant.codebook import Codebook
from corral.quant.encodings import awq, bitsandbytes, compressed_tensors, fbgemm_fp8, gptq
from corral.quant.encodings.awq import AwqSettings
from corral.quant.encodings.bitsandbytes import BitsAndBytesSettings
from corral.quant.encodings.compressed_settings import CompressedTensorsSettings
from corral.quant.encodings.fbgemm_fp8 import Fp8Settings
from corral.quant.encodings.gptq import GptqSettings
from corral.quant.encodings.modules import is_left_out
from corral.quant.encodings.named import EncodingError
from corral.quant.encodings.settings import Fields
from corral.quant.float8 import Float8

METHODS = ("awq", "gptq", "compressed-tensors", "fbgemm_fp8", "fp8", "bitsandbytes")

Settings = AwqSettings | GptqSettings | CompressedTensorsSettings | Fp8Settings | BitsAndBytesSettings


@dataclass(frozen=True)
class Quantization:
    """A method with its settings.

    Attributes:
        method: one of `METHODS`.
        settings: what the method needs to know.
    """

    method: str
    settings: Settings

    @classmethod
    def read(
        cls, fields: object, where: str = "quantization_config", method: str | None = None
    ) -> Quantization:
        """Reads a `quantization_config`; `method` is for the old files of AWQ and GPTQ, which do not name it.

        Raises:
            ConfigError: an unknown method, or a setting that Corral does not read; the message names it.
        """
        named = fields.get("quant_method", method) if isinstance(fields, Mapping) else fields
        if not isinstance(fields, Mapping) or named not in METHODS:
            raise ConfigError(
                f"{where}.quant_method is {named!r}, which Corral does not read; "
                f"it reads {', '.join(METHODS)}, unquantized checkpoints and GGUF files"
            )
        return cls(str(named), _read_settings(str(named), Fields(fields, where)))

    @property
    def parts(self) -> tuple[str, ...]:
        """The tensors that make a weight, by their names within a module."""
        return {
            "awq": ("weight", *awq.PARTS),
            "gptq": ("weight", *gptq.PARTS),
            "compressed-tensors": compressed_tensors.PARTS,
            "bitsandbytes": bitsandbytes.PARTS,
        }.get(self.method, fbgemm_fp8.PARTS)

    @property
    def unused(self) -> tuple[str, ...]:
        """Tensors that say nothing about weights, by their names within a module."""
        if self.method == "compressed-tensors":
            return compressed_tensors.UNUSED
        return fbgemm_fp8.UNUSED if self.method in ("fp8", "fbgemm_fp8") else ()

    def converts(self, module: str) -> bool:
        """Whether the weight of a module may be quantized.

        A module that may be quantized and is not, as heads and embeddings often are, is no contradiction.
        """
        if isinstance(self.settings, CompressedTensorsSettings):
            left_out = self.settings.is_left_out(module)
            return not left_out and self.settings.scheme(module) is not None
        return not is_left_out(module, self.settings.not_converted)

    def decode(self, module: str, tensors: Mapping[str, Tensor]) -> Affine | Codebook | Float8:
        """The weight of a module whose tensors are given by their names within it.

        Raises:
            EncodingError: a tensor is missing or wrong, or the settings leave the module out.
        """
        if not self.converts(module):
            raise EncodingError(min(tensors), "is there, though quantization_config leaves this module out")
        match self.settings:
            case AwqSettings():
                return awq.decode(tensors, self.settings)
            case GptqSettings():
                return gptq.decode(tensors, self.settings)
            case CompressedTensorsSettings():
                scheme = self.settings.scheme(module)
                assert scheme is not None
                return compressed_tensors.decode(tensors, scheme)
            case Fp8Settings():
                return fbgemm_fp8.decode(tensors, self.settings)
            case BitsAndBytesSettings():
                return bitsandbytes.decode(tensors)


def _read_settings(method: str, fields: Fields) -> Settings:
    match method:
        case "awq":
            return AwqSettings.read(fields)
        case "gptq":
            return GptqSettings.read(fields)
        case "compressed-tensors":
            return CompressedTensorsSettings.read(fields)
        case "fbgemm_fp8":
            return Fp8Settings.read_fbgemm(fields)
        case "fp8":
            return Fp8Settings.read(fields)
        case _:
            return BitsAndBytesSettings.read(fields)


OLD_FILES: dict[str, str] = {"quant_config.json": "awq", "quantize_config.json": "gptq"}
"""Files in which AutoAWQ and AutoGPTQ kept their settings before config.json held them, and their methods."""


def read_quantization(
    config: Mapping[str, Any], old: Mapping[str, Mapping[str, Any]] | None = None
) -> Quantization | None:
    """What a config.json, or else one of `OLD_FILES` by its name, says of quantized weights; None: nothing.

    Raises:
        ConfigError: as `Quantization.read`.
    """
    found = config.get("quantization_config") or config.get("compression_config")
    if found:
        return Quantization.read(found)
    for name, fields in (old or {}).items():
        return Quantization.read(fields, name, OLD_FILES[name])
    return None
