"""What a request must be before anything is done for it: every refusal names the field."""

from __future__ import annotations

from collections.abc import Iterable

from corral.engine.request import Request
from corral.errors import RequestError


def check_request(request: Request, vocab_size: int, max_model_len: int, max_num_seqs: int) -> None:
    """Refuses a request that this engine cannot run.

    Raises:
        RequestError: the prompt is empty or leaves no room in the context, `n` or `min_tokens` is more than
            there is room for, or an id lies outside the vocabulary.
    """
    check_prompt(request.tokens, vocab_size, max_model_len - (request.score is None))
    if request.score is None:
        _check_generation(request, vocab_size, max_model_len, max_num_seqs)
    else:
        _check_score(request, vocab_size)


def check_prompt(tokens: Iterable[int], vocab_size: int, longest: int) -> None:
    """Refuses a prompt that is empty, has more than `longest` tokens, or ids outside the vocabulary."""
    tokens = tuple(tokens)
    if not tokens:
        raise RequestError("the prompt is empty; give at least one token")
    if len(tokens) > longest:
        raise RequestError(
            f"the prompt has {len(tokens)} tokens and the context has room for {longest}; shorten the prompt"
        )
    _check_ids("the prompt", tokens, vocab_size)


def _check_generation(request: Request, vocab_size: int, max_model_len: int, max_num_seqs: int) -> None:
    params = request.params
    if params.n > max_num_seqs:
        raise RequestError(f"n is {params.n}; this engine runs {max_num_seqs} outputs at once (max_num_seqs)")
    room = max_model_len - len(request.tokens)
    if params.min_tokens > room:
        raise RequestError(f"min_tokens is {params.min_tokens}, but the context has room for {room} more")
    _check_ids("stop_ids", request.stop_ids, vocab_size)
    _check_ids("stop_token_ids", params.stop_token_ids, vocab_size)
    _check_ids("logit_bias", params.logit_bias, vocab_size)


def _check_score(request: Request, vocab_size: int) -> None:
    score = request.score
    assert score is not None, "the caller has looked"
    last = len(request.tokens) - 1
    wants_next = score.next_top or score.next_token_ids
    if score.start > last + bool(wants_next):
        raise RequestError(f"score.start is {score.start}, but the last token of the prompt is number {last}")
    _check_ids("score.next_token_ids", score.next_token_ids, vocab_size)


def _check_ids(where: str, ids: Iterable[int], vocab_size: int) -> None:
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise RequestError(f"{where} holds token id {token_id}, outside the vocabulary of {vocab_size}")
