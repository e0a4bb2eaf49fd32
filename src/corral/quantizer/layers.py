"""A network that is run one layer at a time, so that only one layer's weights are in memory.

Everything is computed in float32. Letters in shapes: W windows, L tokens of a window, D hidden_size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from corral.checkpoints.checkpoint import Checkpoint
from corral.errors import CheckpointError
from corral.model.attention import PackedCausal
from corral.model.config import LlamaConfig
from corral.model.llama import Layer, Linear, Llama
from corral.model.project import Project, plain
from corral.model.rope import inverse_frequencies, rotation

_TOKENS_AT_ONCE = 2048

STAGES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""The linear layers of a layer in the order in which they run; those of a stage read the same inputs."""


class LayerReader:
    """Reads the parts of a network from a checkpoint, one at a time, as float32.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of the wrong shape; the message names it.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._checkpoint, self._device = checkpoint, device
        self._network = Llama.on_meta(checkpoint.config)

    @property
    def config(self) -> LlamaConfig:
        """The network's shape."""
        return self._checkpoint.config

    @property
    def device(self) -> torch.device:
        """Where the weights are put."""
        return self._device

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of all linear layers of the layers, by module."""
        linears = {name: module for name, module in self._network.named_modules() if ".layers." in name}
        return {n: (m.out_features, m.in_features) for n, m in linears.items() if isinstance(m, Linear)}

    def layer(self, index: int) -> Layer:
        """A layer with its weights, which nothing else shares."""
        with torch.device("meta"):
            layer = Layer(self._checkpoint.config, index)
        prefix = f"model.layers.{index}."
        for name, tensor in self.tensors(prefix).items():
            module, _, leaf = name.removeprefix(prefix).rpartition(".")
            own = tensor.to(self._device, torch.float32, copy=True)
            setattr(layer.get_submodule(module), leaf, nn.Parameter(own, requires_grad=False))
        return layer

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, as they are stored, or as float32 where they are quantized."""
        shapes = {n: t.shape for n, t in self._network.state_dict().items() if n.startswith(prefix)}
        found = dict(self._checkpoint.tensors(prefix))
        for name, tensor in found.items():
            if name in shapes and tensor.shape != shapes[name]:
                raise CheckpointError(
                    f"{self._checkpoint.path}: {name} has shape {list(tensor.shape)}; "
                    f"the configuration asks for {list(shapes[name])}"
                )
        missing = set(shapes) - set(found)
        if self._checkpoint.config.tie_word_embeddings:
            missing.discard("lm_head.weight")
        if missing:
            raise CheckpointError(f"{self._checkpoint.path} lacks {min(missing)}")
        return {name: tensor for name, tensor in found.items() if name in shapes}


def linear_of(layer: Layer, name: str) -> Linear:
    """A linear layer of a layer by its name."""
    linear = layer.get_submodule(name)
    assert isinstance(linear, Linear)
    return linear


class _Reached(Exception):
    """The linear layer whose inputs are wanted has been reached."""


@dataclass(frozen=True, eq=False)
class Windows:
    """What enters a layer: the hidden states of some windows of text.

    Attributes:
        states: float32 [W, L, D].
        inverse: the inverse frequencies of the rotary embedding.
        device: where layers run; states stay where they are.
    """

    states: Tensor
    inverse: Tensor
    device: torch.device

    @classmethod
    def embed(cls, tokens: Sequence[Sequence[int]], reader: LayerReader) -> Windows:
        """Windows of tokens, all of one length, as they enter the first layer."""
        table = reader.tensors("model.embed_tokens.")["model.embed_tokens.weight"]
        states = torch.stack([table[torch.tensor(window)].float() for window in tokens])
        return cls(states, inverse_frequencies(reader.config, len(tokens[0])), reader.device)

    @property
    def num_tokens(self) -> int:
        """Of all windows together."""
        return self.states.shape[0] * self.states.shape[1]

    def some(self, count: int) -> Windows:
        """Up to `count` of them, spread evenly; their states are copies."""
        step = max(1, len(self.states) // count)
        return Windows(self.states[::step][:count].clone(), self.inverse, self.device)

    def run(self, layer: Layer) -> None:
        """Puts all windows through a layer."""
        for part in self._parts():
            self.states[part] = self._through(layer, part, plain).to(self.states.device)

    def inputs(self, layer: Layer, name: str) -> Iterator[Tensor]:
        """What a linear layer of the layer reads, for some windows at a time: [tokens, in_features]."""
        wanted, caught = layer.get_submodule(name), list[Tensor]()

        def project(linear: nn.Module, x: Tensor) -> Tensor:
            if linear is wanted:
                caught.append(x)
                raise _Reached
            return plain(linear, x)

        for part in self._parts():
            try:
                self._through(layer, part, project)
            except _Reached:
                yield caught.pop()

    def attend(self, part: slice) -> tuple[Tensor, Tensor, PackedCausal]:
        """What attention over some windows laid end to end takes: cosines, sines, and who sees whom."""
        count, length = len(self.states[part]), self.states.shape[1]
        positions = torch.arange(length, device=self.device).repeat(count)
        cos, sin = rotation(self.inverse.to(self.device), positions)
        return cos, sin, PackedCausal(range(0, (count + 1) * length, length))

    def _through(self, layer: Layer, part: slice, project: Project) -> Tensor:
        states = self.states[part]
        cos, sin, attend = self.attend(part)
        x: Tensor = layer(states.flatten(0, 1).to(self.device), cos, sin, attend, project)
        return x.view_as(states)

    def _parts(self) -> Iterator[slice]:
        count, length = self.states.shape[:2]
        step = max(1, _TOKENS_AT_ONCE // length)
        for start in range(0, count, step):
            yield slice(start, min(count, start + step))
