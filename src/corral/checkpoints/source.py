"""From a name to an open checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from corral.checkpoints.report import Report, silent
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
    if path.is_file():
        if path.suffix == ".gguf":
            from corral.checkpoints.gguf_reader import GgufCheckpoint

            return GgufCheckpoint(path)
        raise CheckpointError(f"{path} is not a checkpoint; give a folder or a .gguf file")
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist")
    if not any(path.glob("*.safetensors*")):
        for folder in (path, path / "original"):
            if (folder / "params.json").is_file() or any(folder.glob("consolidated.*.pth")):
                from corral.checkpoints.meta_reader import MetaCheckpoint

                return MetaCheckpoint(folder)
        files = sorted(path.glob("*.gguf"))
        if files and not (path / "config.json").is_file():
            return open_checkpoint(_only(files, path))
    from corral.checkpoints.safetensors_reader import SafetensorsCheckpoint

    return SafetensorsCheckpoint(path)


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


def _only(files: list[Path], folder: Path) -> Path:
    firsts = [file for file in files if "-of-" not in file.name or "-00001-of-" in file.name]
    if len(firsts) != 1:
        raise CheckpointError(
            f"{folder} holds several GGUF files; name one of {', '.join(file.name for file in firsts)}"
        )
    return firsts[0]
