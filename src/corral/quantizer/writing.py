"""Puts the finished layers, and what was never quantized, together as a folder or a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from gguf import GGMLQuantizationType as GgmlType
from torch import Tensor

from corral.checkpoints.checkpoint import Checkpoint
from corral.checkpoints.gguf_writer import tensor_types, write_gguf
from corral.checkpoints.hf_writer import SideFiles, write_tensors
from corral.checkpoints.new_file import require_new_file
from corral.checkpoints.new_folder import new_folder, require_new
from corral.checkpoints.report import Report
from corral.quant import Weight
from corral.quantizer.card import model_card
from corral.quantizer.errors import QuantizeError
from corral.quantizer.formats import plain_dtype
from corral.quantizer.layer_loop import LayerLoop
from corral.quantizer.layers import LayerReader
from corral.quantizer.recipe import Recipe
from corral.quantizer.result import QuantizeResult
from corral.quantizer.work import Work

REPORT = "quantization_report.json"


def check_out(out: Path, recipe: Recipe) -> None:
    """Refuses what the result cannot be written to.

    Raises:
        CheckpointError: there is something already.
        QuantizeError: its name is that of another format.
    """
    if recipe.format == "gguf":
        require_new_file(out, ".gguf")
        return
    if out.suffix == ".gguf":
        raise QuantizeError(
            f"{out} is the name of a file, but format {recipe.format} is a folder; see --format"
        )
    require_new(out)


class Writer:
    """Writes what a `LayerLoop` has finished.

    Args:
        checkpoint: where tokenizer, template and the rest come from.
        reader: of the same.
        loop: that is done.
        work: where it has kept the layers.
        recipe: how they were made.
        stored: the type of the checkpoint's weights.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        reader: LayerReader,
        loop: LayerLoop,
        work: Work,
        recipe: Recipe,
        stored: torch.dtype,
    ) -> None:
        self._reader, self._loop, self._work, self._recipe = reader, loop, work, recipe
        self._dtype = plain_dtype(recipe, stored)
        self._beside = SideFiles.of(checkpoint, self._dtype)

    @property
    def num_bytes(self) -> int:
        """Of the tensors of a folder."""
        return sum(tensor.nbytes for _, tensor in self._tensors())

    def folder(self, out: Path, result: QuantizeResult) -> None:
        """Writes a Hugging Face folder, with a model card and the report."""
        beside = replace(
            self._beside,
            quantization=self._loop.config,
            card=model_card(result, out.name),
            others={REPORT: result.to_dict()},
        )
        with new_folder(out, self.num_bytes) as folder:
            write_tensors(folder, self._tensors())
            beside.write(folder)

    def gguf(self, out: Path, report: Report) -> None:
        """Writes a GGUF file."""
        kind = GgmlType.Q4_0 if self._recipe.symmetric else GgmlType.Q4_1
        kinds = tensor_types(self._reader.config, kind)
        kinds.update({f"{name}.weight": GgmlType.F16 for name in self._loop.left_out})
        write_gguf(out, self._beside, kinds, self._weights(), report=report)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._plain("model.embed_tokens.")
        for layer in range(self._reader.config.num_hidden_layers):
            yield from self._finished(layer).items()
        yield from self._plain("model.norm.")
        if not self._reader.config.tie_word_embeddings:
            yield from self._plain("lm_head.")

    def _weights(self) -> Iterator[tuple[str, Weight]]:
        """As `_tensors`, with the weights of modules in place of their parts."""
        modules = self._loop.taken
        seen = set[str]()
        for layer in range(self._reader.config.num_hidden_layers):
            tensors = self._finished(layer)
            for name, tensor in tensors.items():
                module = name.rpartition(".")[0]
                if module not in modules:
                    yield name, tensor
                elif module not in seen:
                    seen.add(module)
                    yield f"{module}.weight", self._loop.weight(tensors, module)
        for prefix in ("model.embed_tokens.", "model.norm.", "lm_head."):
            if prefix != "lm_head." or not self._reader.config.tie_word_embeddings:
                yield from self._plain(prefix)

    def _finished(self, layer: int) -> dict[str, Tensor]:
        kept = self._work.finished(layer)
        assert kept is not None, "all layers are finished"
        return kept[0]

    def _plain(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._reader.tensors(prefix).items():
            yield name, tensor.to(self._dtype).contiguous()
