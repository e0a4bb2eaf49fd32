"""The errors that a user can act on.

Each carries one clear sentence that names the file, field or flag and says what to do. The command prints
that sentence without a traceback; the server will turn it into a 4xx answer. Anything else that is raised
is a bug.
"""


class CorralError(Exception):
    """Base of all errors that are meant for the user."""


class ConfigError(CorralError):
    """A model configuration with a missing, contradictory or unsupported field."""


class CheckpointError(CorralError):
    """A checkpoint file that is missing, truncated or inconsistent with its configuration."""


class ResolveError(CorralError):
    """A model name that leads to no files: unknown, gated, offline, or out of reach."""


class TokenizerError(CorralError):
    """A tokenizer file that cannot be read or does not fit the model."""


class RenderError(CorralError):
    """Messages or tools that the model's prompt format cannot express."""


class RequestError(CorralError):
    """A generation request with a bad parameter: the message names the field."""


class EngineBusyError(CorralError):
    """The engine's queue is full: the same request may be taken on a little later."""


class EngineError(CorralError):
    """A request that failed inside the engine, or an engine that has been closed."""


class PlanError(CorralError):
    """A memory plan that cannot be computed from what was given."""
