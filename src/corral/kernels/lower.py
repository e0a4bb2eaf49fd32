"""The network as a list of operations for the native kernels.

The structure is read off the `Llama` module: what the module computes layer by layer in `forward`, a list
says operation by operation, over buffers with one row per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from corral.model.llama import Layer, Linear, Llama


class OpKind(IntEnum):
    """Operations of the native executor (native/src/program.h)."""

    EMBED = 0
    NORM = 1
    MATMUL = 2
    ROTATE = 3
    ATTEND = 4
    SWIGLU = 5
    SELECT = 6
    LORA = 7
    INPUT = 8


@dataclass(frozen=True)
class Op:
    """One operation. Buffers, matrices and vectors are named; a matrix has the name of its module.

    Attributes:
        source, out: the buffers it reads and writes.
        matrix: the matrix, or for `LORA` the module whose adapter it applies.
        vector: the weights of a norm, or the bias of a matrix.
        column: the first column of `out` that it writes.
        add: whether it adds to `out`.
    """

    kind: OpKind
    out: str
    source: str = ""
    matrix: str = ""
    vector: str = ""
    layer: int = 0
    column: int = 0
    add: bool = False
    eps: float = 0.0


@dataclass(frozen=True)
class OpList:
    """Operations, the columns of the buffers that they use, and the buffer that holds the result."""

    ops: tuple[Op, ...]
    buffers: dict[str, int]
    result: str

    @property
    def sites(self) -> tuple[str, ...]:
        """The modules that an adapter may belong to, in the order of the operations."""
        return tuple(op.matrix for op in self.ops if op.kind is OpKind.LORA)

    @property
    def matrices(self) -> tuple[str, ...]:
        """The matrices that are used."""
        return tuple(dict.fromkeys(op.matrix for op in self.ops if op.kind in (OpKind.EMBED, OpKind.MATMUL)))

    @property
    def vectors(self) -> tuple[str, ...]:
        """The norm weights and biases that are used."""
        return tuple(dict.fromkeys(op.vector for op in self.ops if op.vector))


@dataclass
class _Builder:
    joined: dict[str, Sequence[str]]
    ops: list[Op] = field(default_factory=list)
    buffers: dict[str, int] = field(default_factory=dict)

    def op(self, kind: OpKind, out: str, columns: int, **details: object) -> None:
        self.buffers[out] = max(columns, self.buffers.get(out, 0))
        self.ops.append(Op(kind, out, **details))  # type: ignore[arg-type]

    def linears(
        self, source: str, out: str, linears: Sequence[tuple[str, Linear]], *, add: bool = False
    ) -> None:
        """Applies linear layers side by side: one matrix product for those that are packed as one."""
        columns = sum(linear.out_features for _, linear in linears)
        first = 0
        starts = {}
        for name, linear in linears:
            starts[name] = first
            first += linear.out_features
        for group in _groups([name for name, _ in linears], self.joined):
            has_bias = any(linear.bias is not None for name, linear in linears if name in group)
            name = "+".join(group)
            self.op(
                OpKind.MATMUL,
                out,
                columns,
                source=source,
                matrix=name,
                vector=f"{name}.bias" if has_bias else "",
                column=starts[group[0]],
                add=add,
            )
        for name, _ in linears:
            self.op(OpKind.LORA, out, columns, source=source, matrix=name, column=starts[name])


def side_by_side(model: Llama) -> Iterator[tuple[str, ...]]:
    """The linear layers that read the same rows, so that their matrices may be packed as one."""
    for i in range(model.config.num_hidden_layers):
        attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        yield tuple(f"{attention}.{name}_proj" for name in "qkv")
        yield (f"{attention}.o_proj",)
        yield f"{mlp}.gate_proj", f"{mlp}.up_proj"
        yield (f"{mlp}.down_proj",)


def lower_layers(model: Llama, packed: Sequence[tuple[str, ...]], table: str) -> OpList:
    """From tokens to the hidden states of the wanted rows, normalized for the head: `Llama.forward`.

    `packed` are the linear layers that are packed as one matrix, which has their names joined by "+";
    `table` is the matrix of the embedding. The last layer goes on with the wanted rows alone after its
    attention.
    """
    builder = _Builder({name: names for names in packed for name in names})
    size = model.config.hidden_size
    builder.op(OpKind.EMBED, "x", size, matrix=table)
    last = model.config.num_hidden_layers - 1
    for i, layer in enumerate(model.model.layers):
        assert isinstance(layer, Layer)
        _lower_layer(builder, layer, i, is_last=i == last)
    builder.op(
        OpKind.NORM, "hidden", size, source="wanted x", vector="model.norm.weight", eps=model.model.norm.eps
    )
    return OpList(tuple(builder.ops), builder.buffers, "hidden")


def lower_head(model: Llama) -> OpList:
    """From hidden states to the scores of the next token: `Llama.logits`."""
    builder = _Builder({"lm_head": ("lm_head",)})
    builder.op(OpKind.INPUT, "hidden", model.config.hidden_size)
    builder.linears("hidden", "logits", [("lm_head", model.lm_head)])
    return OpList(tuple(builder.ops), builder.buffers, "logits")


def _lower_layer(builder: _Builder, layer: Layer, i: int, *, is_last: bool) -> None:
    name, attention, mlp = f"model.layers.{i}", layer.self_attn, layer.mlp
    size = attention.q_proj.in_features
    norm = layer.input_layernorm
    builder.op(OpKind.NORM, "normed", size, source="x", vector=f"{name}.input_layernorm.weight", eps=norm.eps)
    linears = [(f"{name}.self_attn.{n}", getattr(attention, n)) for n in ("q_proj", "k_proj", "v_proj")]
    builder.linears("normed", "qkv", linears)
    builder.op(OpKind.ROTATE, "qkv", 0, layer=i)
    mixed, x, normed, gated, product = "mixed", "x", "normed", "gate and up", "product"
    columns = attention.q_proj.out_features
    builder.op(OpKind.ATTEND, mixed, columns, source="qkv", layer=i)
    if is_last:
        builder.op(OpKind.SELECT, "wanted mixed", columns, source=mixed)
        builder.op(OpKind.SELECT, "wanted x", size, source=x)
        mixed, x, normed, gated, product = (f"wanted {n}" for n in (mixed, x, normed, gated, product))
    builder.linears(mixed, x, [(f"{name}.self_attn.o_proj", attention.o_proj)], add=True)
    norm = layer.post_attention_layernorm
    vector = f"{name}.post_attention_layernorm.weight"
    builder.op(OpKind.NORM, normed, size, source=x, vector=vector, eps=norm.eps)
    linears = [(f"{name}.mlp.{n}", getattr(mlp, n)) for n in ("gate_proj", "up_proj")]
    builder.linears(normed, gated, linears)
    builder.op(OpKind.SWIGLU, product, mlp.down_proj.in_features, source=gated)
    builder.linears(product, x, [(f"{name}.mlp.down_proj", mlp.down_proj)], add=True)


def _groups(names: Sequence[str], joined: dict[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """The names in order, those that are packed as one together."""
    return list(dict.fromkeys(tuple(joined.get(name, (name,))) for name in names))
