"""From a name to an open checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from corral.checkpoints.report import Report, silent
from corral.checkpoints.snapshot import weights_in
from corral.errors import CheckpointError
from corral.model.config import LlamaConfig
from corral.model.presets import find_preset

if TYPE_CHECKING:
    from corral.checkpoints.checkpoint import Checkpoint


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens the checkpoint in a folder or file, by what lies there.

    Raises:
        CheckpointError: nothing there is a checkpoint, or it is damaged.
        ConfigError: the configuration is missing a field or contradicts itself.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    found = weights_in(path)
    if found.suffix == ".gguf" and found.is_file():
        from corral.checkpoints.gguf_reader import GgufCheckpoint

        return GgufCheckpoint(found)
    if found.is_file():
        raise CheckpointError(f"{found} is not a checkpoint; give a folder or a .gguf file")
    if any(found.glob("consolidated.*.pth")) and not any(found.glob("*.safetensors*")):
        from corral.checkpoints.meta_reader import MetaCheckpoint

        return MetaCheckpoint(found)
    from corral.checkpoints.safetensors_reader import SafetensorsCheckpoint

    return SafetensorsCheckpoint(found)


def open_model(name: str, report: Report = silent) -> Checkpoint:
    """Resolves a model's name, fetching the model if need be, and opens it.

    The name of a published model tells its prompt family, which its files may not.
    """
    from corral.checkpoints.names import find_local, parse_hub_name
    from corral.checkpoints.resolve import resolve

    checkpoint = open_checkpoint(resolve(name, report=report))
    preset = None if find_local(name) else find_preset(parse_hub_name(name).repo_id)
    if preset is not None and preset.instruct:
        checkpoint.family = preset.family
    return checkpoint


def read_config(name: str) -> LlamaConfig:
    """The shape of a model from its configuration alone; of a Hub name only that file is fetched."""
    from corral.checkpoints.resolve import resolve_config

    found = resolve_config(name)
    if found.name == "config.json":
        from corral.checkpoints.safetensors_reader import read_configs

        return read_configs(found.parent)[0]
    if (found / "params.json").is_file():
        from corral.checkpoints.meta_reader import read_params

        return read_params(found / "params.json")
    return open_checkpoint(found).config
