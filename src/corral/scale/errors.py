"""What a run on many devices refuses, and how it fails."""

from __future__ import annotations

from corral.errors import CorralError


class ParallelError(CorralError):
    """A plan that does not fit the model or the machine; names the setting and says what to do."""


class ProcessesLostError(ParallelError):
    """Another process of the run ended or stopped answering: the trouble is there, not here."""
