"""What a training run refuses."""

from __future__ import annotations

from corral.errors import CorralError


class TuneError(CorralError):
    """Data, a configuration or a checkpoint that cannot be trained with; names row, key or file."""
