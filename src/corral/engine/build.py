"""An engine for a model: its cache sized for the memory that is free, its runner, its speculation."""

from __future__ import annotations

import logging
from collections.abc import Callable

from corral.engine.cache.block_pool import BlockPool
from corral.engine.cache.sizing import CacheFit, fit_cache
from corral.engine.cache.storage import KVStorage
from corral.engine.engine import Engine
from corral.engine.networks import Network, Runners
from corral.engine.options import EngineOptions
from corral.engine.run.adapters import AdapterSet
from corral.engine.speculation.control import DraftControl
from corral.engine.speculation.draft_model import DraftModel, check_draft
from corral.engine.speculation.speculation import (
    DraftModelProposer,
    LookupProposer,
    Proposer,
    Speculation,
)
from corral.engine.speculation.speculator import Speculator
from corral.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def build_engine(
    model: Network,
    tokenizer: Tokenizer | None = None,
    options: EngineOptions = EngineOptions(),
    draft: Network | None = None,
    notice: Callable[[str], None] = logger.info,
) -> Engine:
    """An engine that runs a model whose weights are loaded. It starts its thread at once.

    A model on a CPU is packed for the native kernels, unless they are missing or `options` say otherwise.
    `draft` is the smaller model that `options.speculative_config` names, on the same device. `notice` is told
    what a person should know, such as that the context was fitted to the memory.

    Raises:
        RequestError: the memory or the draft model does not do; the message names the option.
    """
    runners = Runners(options, model.device)
    model, draft = runners.prepare(model), None if draft is None else runners.prepare(draft, is_draft=True)
    scheduler = options.scheduler(model.device.type)
    fit = fit_cache(model, options, scheduler, None if draft is None else draft.config)
    for note in fit.notes:
        notice(note)
    storage = _storage(model, fit, options.block_size)
    adapters = AdapterSet(model)
    return Engine(
        runners.runner(model, storage, adapters),
        BlockPool(fit.num_blocks, options.block_size, options.enable_prefix_caching),
        adapters,
        vocab_size=model.config.vocab_size,
        max_model_len=fit.max_model_len,
        tokenizer=tokenizer,
        config=scheduler,
        speculator=_speculator(model, draft, options, fit, runners),
    )


def _storage(model: Network, fit: CacheFit, block_size: int) -> KVStorage:
    return KVStorage(model.config, fit.num_blocks, block_size, fit.kv_dtype, model.dtype, model.device)


def _speculator(
    model: Network, draft: Network | None, options: EngineOptions, fit: CacheFit, runners: Runners
) -> Speculator | None:
    config = options.speculative_config
    if config is None:
        return None
    proposer: Proposer = LookupProposer()
    if draft is not None:
        check_draft(model.config, draft.config)
        storage = _storage(draft, fit, options.block_size)
        runner = runners.runner(draft, storage, AdapterSet(draft))
        proposer = DraftModelProposer(DraftModel(runner, options.block_size))
    return Speculation(DraftControl(config.num_speculative_tokens, config.max_batch), proposer)
