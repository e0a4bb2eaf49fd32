"""What an evaluation refuses."""

from __future__ import annotations

from corral.errors import CorralError


class EvalError(CorralError):
    """A text, a pair of models, or a model's scores that cannot be evaluated; the message says why."""
