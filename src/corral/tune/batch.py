"""A microbatch: documents side by side in one flat row, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from corral.tune.examples import Example, Item


@dataclass(frozen=True, eq=False)
class Batch:
    """T tokens of several documents, N of them trained.

    Attributes:
        items: what the documents were made of, as the objective that made them knows it.
        tokens: [T] int64.
        positions: [T] int64, from 0 in each document.
        bounds: the starts of the documents and the end of the last.
        rows: [N] int64; the hidden state of row `rows[i]` predicts `targets[i]`.
        targets: [N] int64, the trained tokens.
        owners: [N] int64, the document of each.
    """

    items: tuple[Item, ...]
    tokens: Tensor
    positions: Tensor
    bounds: tuple[int, ...]
    rows: Tensor
    targets: Tensor
    owners: Tensor

    @classmethod
    def of(cls, documents: Sequence[Example], items: Sequence[Item] = ()) -> Batch:
        """Puts documents side by side, in their order."""
        lengths = [len(document) for document in documents]
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        tokens = np.concatenate([document.tokens for document in documents]).astype(np.int64)
        (trained,) = np.nonzero(np.concatenate([document.trained for document in documents]))
        owners = np.repeat(np.arange(len(documents)), [document.num_trained for document in documents])
        return cls(
            items=tuple(items),
            tokens=torch.from_numpy(tokens),
            positions=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])),
            bounds=tuple(int(bound) for bound in bounds),
            rows=torch.from_numpy(trained - 1),
            targets=torch.from_numpy(tokens[trained]),
            owners=torch.from_numpy(owners),
        )

    @property
    def num_documents(self) -> int:
        return len(self.bounds) - 1

    @property
    def num_trained(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> Batch:
        names = ("tokens", "positions", "rows", "targets", "owners")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})

    def by_document(self, values: Tensor) -> Tensor:
        """Sums of values [N], one for each trained token, over each document: [documents]."""
        return values.new_zeros(self.num_documents).index_add(0, self.owners, values)

    def trained_by_document(self) -> Tensor:
        """Trained tokens of each document: int64 [documents]."""
        return torch.bincount(self.owners, minlength=self.num_documents)
