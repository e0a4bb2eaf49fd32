"""The tensors of a checkpoint that many processes write together, each its part (DCP's format).

tensors/.metadata, tensors/__0_0.distcp, tensors/__1_0.distcp, ...: what was cut for one number of processes
can be read by another. All processes see one file system.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from corral.model.llama import Llama
from corral.scale.sharding import let_go
from corral.tune.matching import require_match
from corral.tune.tensor_store import Groups

_FOLDER = "tensors"


class ShardedStore:
    """Writes and reads tensors that are spread over processes; also where a process is alone.

    Args:
        model: the one in training: what was read counts for it at once.
    """

    spread = True

    def __init__(self, model: Llama) -> None:
        self._model = model

    def write(self, folder: Path, groups: Groups) -> None:
        writer = FileSystemWriter(folder / _FOLDER, sync_files=True, overwrite=False)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # which only say that a process is alone
                save(dict(_flat(groups)), storage_writer=writer, no_dist=not _together())
        except CheckpointException as error:
            raise OSError(_trouble(error)) from None

    def read(self, folder: Path, groups: Groups) -> Groups:
        """Reads into the tensors that are given.

        Raises:
            OSError: a file is missing or damaged.
            TuneError: what was written has other names, shapes or types; nothing has changed then.
        """
        place, wanted = folder / _FOLDER, dict(_flat(groups))
        reader = FileSystemReader(place)
        require_match(wanted, _kept(reader, place), str(folder))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # which only say that a process is alone
                load(wanted, storage_reader=reader, no_dist=not _together())
        except CheckpointException as error:
            raise OSError(_trouble(error)) from None
        let_go(self._model)
        return groups


def _flat(groups: Groups) -> Mapping[str, Tensor]:
    """All tensors in one mapping; they share memory with those given."""
    return {
        f"{group}/{name}": tensor.detach()
        for group, tensors in groups.items()
        for name, tensor in tensors.items()
    }


def _together() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _kept(reader: FileSystemReader, place: Path) -> dict[str, Tensor]:
    """What was written, as tensors without memory."""
    try:
        metadata = reader.read_metadata()
    except (pickle.UnpicklingError, EOFError, AttributeError, ValueError) as error:
        raise OSError(f"{place / '.metadata'} cannot be read ({error})") from None
    return {
        name: torch.empty(kept.size, dtype=kept.properties.dtype, device="meta")
        for name, kept in metadata.state_dict_metadata.items()
        if isinstance(kept, TensorStorageMetadata)
    }


def _trouble(error: CheckpointException) -> str:
    """The first process's own words."""
    (_, (cause, _)), *_ = sorted(error.failures.items())
    return str(getattr(cause, "strerror", None) or cause) or type(cause).__name__
