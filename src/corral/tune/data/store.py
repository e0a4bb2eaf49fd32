"""Items on disk, memory-mapped: whole folders that every process of a machine shares.

A folder holds the tokens of all documents one after another (`tokens.bin`, int32), whether each is trained
(`trained.bin`, one byte), where documents end (`ends.npy`), and what is known of each item.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from corral.tune.errors import TuneError
from corral.tune.examples import Example, Item, Mask, Pair, Rated, Tokens

_DOCUMENTS = {"example": 1, "pair": 2, "rated": 2}  # of each item
_COLUMNS: Mapping[str, str] = {
    "desirable": "B",  # 1 for items that are rated so
    "sources": "i",  # the place of the source that an item came from
    "trained": "q",  # trained tokens of an item
    "content": "Q",  # a hash of all of an item: tokens, which are trained, rating
    "prompts": "Q",  # a hash of the prompt of a preference or rating; of another item that of all its tokens
}
_META, _ENDS, _TOKENS, _TRAINED = "meta.json", "ends.npy", "tokens.bin", "trained.bin"


class ItemWriter:
    """Writes items into a folder; use it as a context manager, and `finish` it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ends = array("q", [0])
        self._columns = {name: array(code) for name, code in _COLUMNS.items()}
        self._kind: str | None = None
        self._files = ExitStack()

    def __enter__(self) -> ItemWriter:
        self._tokens = self._files.enter_context((self._folder / _TOKENS).open("wb"))
        self._trained = self._files.enter_context((self._folder / _TRAINED).open("wb"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    @property
    def num_bytes(self) -> int:
        """Of tokens, so far."""
        return self._ends[-1] * 4

    def add(self, item: Item, source: int) -> None:
        """Appends an item of the source at some place; all items are of one kind."""
        self._kind = self._kind or _kind_of(item)
        assert self._kind == _kind_of(item), "all items are of one kind"
        documents = _documents(item)
        for tokens, trained in documents:
            self._tokens.write(tokens.astype("<i4").tobytes())
            self._trained.write(trained.tobytes())
            self._ends.append(self._ends[-1] + len(tokens))
        columns = self._columns
        rating = int(isinstance(item, Rated) and item.desirable)
        columns["desirable"].append(rating)
        columns["sources"].append(source)
        columns["trained"].append(int(sum(trained.sum() for _, trained in documents)))
        columns["content"].append(_hash(*(part for document in documents for part in document), [rating]))
        columns["prompts"].append(_hash(_prompt(item)))

    def finish(self, meta: Mapping[str, Any]) -> None:
        """Writes all that is not written yet, and what else is to be known of the items."""
        self._files.close()
        np.save(self._folder / _ENDS, np.asarray(self._ends, dtype=np.int64))
        for name, values in self._columns.items():
            np.save(self._folder / f"{name}.npy", np.asarray(values, dtype=np.dtype(values.typecode)))
        fields = {**meta, "kind": self._kind or "example"}
        (self._folder / _META).write_text(json.dumps(fields, indent=1) + "\n", "utf-8")


class StoredItems:
    """The items of a folder that `ItemWriter` finished.

    Attributes:
        meta: what else is known of them.
        lengths: [items] int64, tokens of each.
        desirable, sources, trained, content, prompts: [items], as the writer noted them.

    Raises:
        TuneError: a file of the folder is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._open(folder)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise TuneError(
                f"the prepared data in {folder} is damaged ({error}); delete that folder, and it is made "
                "again"
            ) from None

    def _open(self, folder: Path) -> None:
        self.meta: dict[str, Any] = json.loads((folder / _META).read_text("utf-8"))
        self._kind: str = self.meta["kind"]
        self._ends: NDArray[np.int64] = np.load(folder / _ENDS)
        columns = {name: np.load(folder / f"{name}.npy") for name in _COLUMNS}
        self.desirable: NDArray[np.bool_] = columns["desirable"].astype(np.bool_)
        self.sources: NDArray[np.int32] = columns["sources"]
        self.trained: NDArray[np.int64] = columns["trained"]
        self.content: NDArray[np.uint64] = columns["content"]
        self.prompts: NDArray[np.uint64] = columns["prompts"]
        self.lengths: NDArray[np.int64] = np.diff(self._ends[:: _DOCUMENTS[self._kind]])
        total = int(self._ends[-1])
        self._tokens: Tokens = np.memmap(folder / _TOKENS, "<i4", "r", shape=total)
        self._trained: Mask = np.memmap(folder / _TRAINED, np.bool_, "r", shape=total)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Item:
        if self._kind == "example":
            return self._example(index)
        if self._kind == "pair":
            return Pair(self._example(2 * index), self._example(2 * index + 1))
        return Rated(
            self._document(2 * index)[0], self._document(2 * index + 1)[0], bool(self.desirable[index])
        )

    def _example(self, document: int) -> Example:
        return Example(*self._document(document))

    def _document(self, document: int) -> tuple[Tokens, Mask]:
        start, end = int(self._ends[document]), int(self._ends[document + 1])
        return np.asarray(self._tokens[start:end]), np.asarray(self._trained[start:end])


class ItemStore(Sequence[Item]):
    """Some items of a folder, in some order; an item may come several times.

    Attributes:
        lengths: [items] int64, what `len` of each item gives.
        indices: [items] int64, the place of each in its folder.
    """

    def __init__(self, stored: StoredItems, indices: NDArray[np.int64]) -> None:
        self._stored, self.indices = stored, indices
        self.lengths: NDArray[np.int64] = stored.lengths[indices]

    @property
    def fingerprint(self) -> str:
        """What tells whether items and their order are the same: a SHA-256 in hexadecimal."""
        return hashlib.sha256(self._stored.content[self.indices].astype("<u8").tobytes()).hexdigest()

    @property
    def num_trained(self) -> int:
        """Trained tokens of all items."""
        return int(self._stored.trained[self.indices].sum())

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> ItemStore: ...

    def __getitem__(self, index: int | slice) -> Item | ItemStore:
        if isinstance(index, slice):
            return ItemStore(self._stored, self.indices[index])
        return self._stored[int(self.indices[index])]


def _kind_of(item: Item) -> str:
    return type(item).__name__.lower()


def _documents(item: Item) -> list[tuple[Tokens, Mask]]:
    match item:
        case Example():
            return [(item.tokens, item.trained)]
        case Pair():
            return [(each.tokens, each.trained) for each in (item.chosen, item.rejected)]
        case Rated():
            trained = item.example.trained
            start = len(item.prompt)
            return [(item.prompt, trained[:start]), (item.completion, trained[start:])]


def _prompt(item: Item) -> Tokens:
    match item:
        case Example():
            return item.tokens
        case Pair():
            return item.chosen.tokens[: int(np.argmax(item.chosen.trained))]
        case Rated():
            return item.prompt


def _hash(*parts: Tokens | Mask | Sequence[int]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(np.asarray(part, dtype="<i4").tobytes())
    return int.from_bytes(digest.digest(), "little")
