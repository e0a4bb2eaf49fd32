"""What a run starts from: the model's files, its tokenizer and prompt format, and the data as tokens."""

from __future__ import annotations

from dataclasses import dataclass

from corral.checkpoints.cache import cache_folder
from corral.checkpoints.checkpoint import Checkpoint
from corral.checkpoints.report import Report, silent
from corral.checkpoints.source import open_model
from corral.errors import RenderError
from corral.text.prompt_format import choose_renderer
from corral.text.rendered import Renderer
from corral.text.tokenizer import Tokenizer
from corral.tune.config import RunConfig
from corral.tune.data.prepare import Prepared, prepare


@dataclass(frozen=True)
class Inputs:
    """Of a run. `renderer` is None where the model has no prompt format, which texts can do without."""

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    renderer: Renderer | None
    data: Prepared

    @classmethod
    def open(cls, config: RunConfig, report: Report = silent) -> Inputs:
        """Fetches and reads them; the weights are not loaded.

        Raises:
            CorralError: the model or the data cannot be read, or do not fit together.
        """
        checkpoint = open_model(config.model, report)
        tokenizer = checkpoint.tokenizer()
        renderer = _renderer(config, checkpoint, tokenizer)
        data = prepare(
            config.data,
            config.objective,
            tokenizer,
            renderer,
            checkpoint.config.max_position_embeddings,
            cache_folder() / "tune" / "data",
            report,
            seed=config.seed,
        )
        return cls(checkpoint, tokenizer, renderer, data)


def _renderer(config: RunConfig, checkpoint: Checkpoint, tokenizer: Tokenizer) -> Renderer | None:
    try:
        return choose_renderer(
            tokenizer,
            chat_template=checkpoint.chat_template,
            family=checkpoint.family,
            prompt_format=config.data.prompt_format,
            stop_ids=[i for i in checkpoint.generation.eos_token_ids if i < checkpoint.config.vocab_size],
        )
    except RenderError:
        if config.data.prompt_format is not None:
            raise
        return None
