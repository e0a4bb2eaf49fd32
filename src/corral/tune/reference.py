"""What the reference thinks of completions: by the network without its adapters, or computed before training.

Computed before, log-probabilities lie in the cache, by the hash of data and model; a data set whose items
bring theirs along, `Referenced`, goes where the plain one went.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor, nn

from corral.checkpoints.cache import cache_folder, whole_file
from corral.scale.tensors import whole_of
from corral.tune.batch import Batch
from corral.tune.errors import TuneError
from corral.tune.examples import Example, Item, Pair, Rated, Tokens, joined
from corral.tune.loop import Alone, Ranks
from corral.tune.network import Network

Floats = NDArray[np.float32]
_Group = tuple[list[int], list[Example]]  # rows, and two documents for each

_VERSION = "1"  # of what the files hold


@dataclass(frozen=True, eq=False)
class ReferencedPair(Pair):
    """A preference with the log-probabilities of its completions by the reference."""

    chosen_logprob: float
    rejected_logprob: float


@dataclass(frozen=True, eq=False)
class ReferencedRated(Rated):
    """A rated completion with its log-probability by the reference, and a completion of another prompt (cut
    where both are too long) with what it has after this one."""

    logprob: float
    other: Tokens
    other_logprob: float


def reference_logprobs(network: Network, batch: Batch) -> Tensor:
    """Log-probabilities of the trained tokens of each document by the reference, float32 [documents]: those
    that items bring along, or else those by the network without its adapters."""
    known = list(chain.from_iterable(map(_known, batch.items)))
    if known:
        assert len(known) == batch.num_documents, "all items bring theirs along, or none does"
        return torch.tensor(known, dtype=torch.float32, device=batch.tokens.device)
    with network.reference():
        return batch.by_document(network.token_logprobs(batch))


def is_cached(
    section: str, reference: Literal["auto", "adapter", "cached"], *, adapters: bool, continued: bool = False
) -> bool:
    """Whether the reference is computed before training.

    Args:
        section: of the configuration, for the error: "dpo" or "kto".
        reference: the setting. "auto" runs the network without its adapters, where that is the model which
            training starts from.
        adapters: whether adapters are what is trained.
        continued: whether they come from a folder, so that without them the network is another model.

    Raises:
        TuneError: there are no adapters to switch off.
    """
    if reference == "adapter" and not adapters:
        raise TuneError(
            f'{section}.reference is "adapter", but parameters.method is "full", which has no adapter to '
            'switch off: choose "cached"'
        )
    return reference == "cached" or (reference == "auto" and (not adapters or continued))


class Referenced(Sequence[Item]):
    """A data set of pairs or rated completions that bring their log-probabilities by the reference along."""

    def __init__(
        self, items: Sequence[Item], others: Sequence[int], logprobs: Floats, max_length: int | None
    ):
        assert logprobs.shape == (len(items), 2), "two documents for each item"
        self._items, self._others, self._max_length = items, others, max_length
        self._logprobs = logprobs

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        item, (first, second) = self._items[index], self._logprobs[index].tolist()
        if isinstance(item, Pair):
            return ReferencedPair(item.chosen, item.rejected, first, second)
        assert isinstance(item, Rated), "only pairs and rated completions have a reference"
        other = _completion(self._items[self._others[index]])[: _room(item, self._max_length)]
        return ReferencedRated(item.prompt, item.completion, item.desirable, first, other, second)


def with_reference(
    items: Sequence[Item],
    network: Network,
    model_hash: str,
    *,
    batch_tokens: int,
    max_length: int | None = None,
    adapted: bool = False,
    folder: Path | None = None,
    ranks: Ranks | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Referenced:
    """The data with its log-probabilities by the network as it is, computed once and then taken from disk.

    A rated completion gets one more: after its prompt, that of the last row before it with another prompt.

    Args:
        items: all pairs, or all rated completions.
        model_hash: `model_hash` of the network, with its adapters where `adapted`.
        batch_tokens: tokens that go through the network at once.
        max_length: where documents of mismatched prompts and completions are cut.
        adapted: whether the reference has the adapters that the network has (without dropout: they are to be
            in evaluation mode); otherwise it is the network without them.
        folder: None takes the cache.
        ranks: each computes a share.
        progress: told how many items of how many are done.

    Raises:
        ResolveError: the disk is full, or cannot be written.
    """
    ranks = ranks or Alone()
    survey = _Survey.of(items)
    key = "\0".join([_VERSION, survey.hash, model_hash, str(max_length), str(adapted)])
    name = f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
    file = (folder or cache_folder() / "tune" / "reference") / name
    logprobs = _read(file, len(items))
    (found,) = ranks.total([0.0 if logprobs is None else 1.0])
    if logprobs is None or found < ranks.size:
        documents = _Documents(items, survey.others, max_length)
        as_reference = nullcontext() if adapted else network.reference()
        logprobs, counts = _compute(documents, network, as_reference, batch_tokens, ranks, progress)
        if ranks.rank == 0:
            with whole_file(file) as out:
                out.write(save({"logprobs": logprobs, "counts": counts}))
    return Referenced(items, survey.others, logprobs, max_length)


def model_hash(model: nn.Module) -> str:
    """SHA-256 of a network's weights, names, types and configuration.

    Of a network that is spread over processes, all of them call this, and get the same as of a whole one.
    """
    digest = hashlib.sha256(repr(getattr(model, "config", None)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        numbers: Any = whole_of(tensor).cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(numbers)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Survey:
    """The SHA-256 of a data set, and for each rated completion the row whose completion is its other."""

    hash: str
    others: list[int]

    @classmethod
    def of(cls, items: Sequence[Item]) -> _Survey:
        digest, prompts = hashlib.sha256(), []
        for item in (items[i] for i in range(len(items))):
            digest.update(b"pair" if isinstance(item, Pair) else b"rated")
            for document in _own_documents(item):
                digest.update(len(document).to_bytes(8, "little"))
                digest.update(document.tokens.astype("<i4").tobytes())
                digest.update(np.packbits(document.trained).tobytes())
            if isinstance(item, Rated):
                prompts.append(hash(item.prompt.tobytes()))
        return cls(digest.hexdigest(), _last_different(prompts))


def _last_different(values: Sequence[int]) -> list[int]:
    """For each place the last one before it with another value, going round; where there is none, the one
    before."""
    n = len(values)
    found = [i - 1 for i in range(n)]
    if len(set(values)) > 1:
        for place in range(2 * n):  # twice round: what a place needs to know is known by then
            i, before = place % n, place % n - 1
            found[i] = before if values[before] != values[i] else found[before]
    return [i % n for i in found]


class _Documents:
    """The two documents of each item that the reference is asked about."""

    def __init__(self, items: Sequence[Item], others: Sequence[int], max_length: int | None) -> None:
        self._items, self._others, self._max_length = items, others, max_length

    def __len__(self) -> int:
        return len(self._items)

    def of(self, index: int) -> list[Example]:
        item = self._items[index]
        if not isinstance(item, Rated):
            return _own_documents(item)
        other = _completion(self._items[self._others[index]])[: _room(item, self._max_length)]
        return [item.example, joined(item.prompt, other)]

    def groups(self, tokens: int) -> Iterator[_Group]:
        """Items, one after another, in groups of up to so many tokens, or of one item."""
        rows: list[int] = []
        documents: list[Example] = []
        for index in range(len(self)):
            both = self.of(index)
            if rows and sum(map(len, documents)) + sum(map(len, both)) > tokens:
                yield rows, documents
                rows, documents = [], []
            rows.append(index)
            documents += both
        if rows:
            yield rows, documents


def _compute(
    documents: _Documents,
    network: Network,
    as_reference: AbstractContextManager[None],
    tokens: int,
    ranks: Ranks,
    progress: Callable[[int, int], None] | None,
) -> tuple[Floats, NDArray[np.int32]]:
    """Log-probabilities and numbers of trained tokens, [items, 2]; a share by each rank, and all by all."""
    logprobs = np.zeros((len(documents), 2), dtype=np.float32)
    counts = np.zeros((len(documents), 2), dtype=np.int32)
    with as_reference, torch.no_grad():
        for rows, group in _share(documents.groups(tokens), ranks):
            batch = Batch.of(group).to(network.device)
            sums = batch.by_document(network.token_logprobs(batch))
            if not rows:
                continue
            logprobs[rows] = sums.view(-1, 2).cpu().numpy()
            counts[rows] = batch.trained_by_document().view(-1, 2).cpu().numpy()
            if progress is not None:
                progress(rows[-1] + 1, len(documents))
    if ranks.size > 1:
        logprobs[:] = np.reshape(ranks.total(logprobs.ravel().tolist()), logprobs.shape)
        counts[:] = np.reshape(ranks.total(counts.ravel().tolist()), counts.shape)
    return logprobs, counts


def _share(groups: Iterable[_Group], ranks: Ranks) -> Iterator[_Group]:
    """Every so-many-eth group. All ranks get as many: a rank that has none left gets another's documents,
    and no rows to put what comes out of them."""
    left = iter(groups)
    while turn := list(islice(left, ranks.size)):
        yield turn[ranks.rank] if ranks.rank < len(turn) else ([], turn[0][1])


def _read(file: Path, num_items: int) -> Floats | None:
    """The log-probabilities of a file; None where it is not there, or broken."""
    try:
        logprobs = load(file.read_bytes())["logprobs"]
    except (OSError, SafetensorError, KeyError):
        return None
    return logprobs if logprobs.shape == (num_items, 2) and logprobs.dtype == np.float32 else None


def _known(item: Item) -> tuple[float, ...]:
    if isinstance(item, ReferencedPair):
        return item.chosen_logprob, item.rejected_logprob
    return (item.logprob,) if isinstance(item, ReferencedRated) else ()


def _own_documents(item: Item) -> list[Example]:
    if isinstance(item, Pair):
        return [item.chosen, item.rejected]
    return [item.example if isinstance(item, Rated) else item]


def _completion(item: Item) -> Tokens:
    assert isinstance(item, Rated), "all items are rated completions"
    return item.completion


def _room(item: Rated, max_length: int | None) -> int | None:
    """Tokens that a completion after an item's prompt may have."""
    return None if max_length is None else max(0, max_length - len(item.prompt))
