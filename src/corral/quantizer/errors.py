"""What a quantization refuses."""

from __future__ import annotations

from corral.errors import CorralError


class QuantizeError(CorralError):
    """A model, a recipe or a calibration text that cannot be quantized with; the message says why."""
