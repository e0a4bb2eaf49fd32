"""An engine for a model: its cache sized for the memory that is free, its runner, its speculation."""

from __future__ import annotations

import logging
from collections.abc import Callable

from corral.engine.cache.block_pool import BlockPool
from corral.engine.cache.sizing import CacheFit, fit_cache
from corral.engine.cache.storage import KVStorage
from corral.engine.engine import Engine
from corral.engine.options import EngineOptions
from corral.engine.run.adapters import AdapterSet
from corral.engine.run.graphs import CudaCapture, GraphRunner
from corral.engine.run.runner import Runner, TorchRunner
from corral.engine.speculation.control import DraftControl
from corral.engine.speculation.draft_model import DraftModel, check_draft
from corral.engine.speculation.speculation import (
    DraftModelProposer,
    LookupProposer,
    Proposer,
    Speculation,
)
from corral.engine.speculation.speculator import Speculator
from corral.model.llama import Llama
from corral.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def build_engine(
    model: Llama,
    tokenizer: Tokenizer | None = None,
    options: EngineOptions = EngineOptions(),
    draft: Llama | None = None,
    notice: Callable[[str], None] = logger.info,
) -> Engine:
    """An engine that runs a model whose weights are loaded. It starts its thread at once.

    `draft` is the smaller model that `options.speculative_config` names, on the same device. `notice` is told
    what a person should know, such as that the context was fitted to the memory.

    Raises:
        RequestError: the memory or the draft model does not do; the message names the option.
    """
    scheduler = options.scheduler(model.device.type)
    fit = fit_cache(model, options, scheduler, None if draft is None else draft.config)
    for note in fit.notes:
        notice(note)
    storage = _storage(model, fit, options.block_size)
    adapters = AdapterSet(model)
    return Engine(
        _runner(model, storage, adapters),
        BlockPool(fit.num_blocks, options.block_size, options.enable_prefix_caching),
        adapters,
        vocab_size=model.config.vocab_size,
        max_model_len=fit.max_model_len,
        tokenizer=tokenizer,
        config=scheduler,
        speculator=_speculator(model, draft, options, fit),
    )


def _storage(model: Llama, fit: CacheFit, block_size: int) -> KVStorage:
    return KVStorage(model.config, fit.num_blocks, block_size, fit.kv_dtype, model.dtype, model.device)


def _runner(model: Llama, storage: KVStorage, adapters: AdapterSet) -> Runner:
    if model.device.type == "cuda":
        return GraphRunner(model, storage, adapters, CudaCapture())
    return TorchRunner(model, storage, adapters)


def _speculator(
    model: Llama, draft: Llama | None, options: EngineOptions, fit: CacheFit
) -> Speculator | None:
    config = options.speculative_config
    if config is None:
        return None
    proposer: Proposer = LookupProposer()
    if draft is not None:
        check_draft(model.config, draft.config)
        runner = _runner(draft, _storage(draft, fit, options.block_size), AdapterSet(draft))
        proposer = DraftModelProposer(DraftModel(runner, options.block_size))
    return Speculation(DraftControl(config.num_speculative_tokens, config.max_batch), proposer)
