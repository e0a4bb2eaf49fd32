"""All peers, by name. Corral comes first: it is what the others are compared with."""

from __future__ import annotations

from types import ModuleType

from . import corral_peer, ik_llama, llama_cpp, onnxruntime_genai, openvino, transformers_peer, vllm_cpu
from .base import Peer

_MODULES: tuple[ModuleType, ...] = (
    corral_peer,
    llama_cpp,
    openvino,
    vllm_cpu,
    transformers_peer,
    ik_llama,
    onnxruntime_genai,
)

PEERS: dict[str, Peer] = {module.PEER.name: module.PEER for module in _MODULES}


def module_of(peer: Peer) -> str:
    """The name of the peer's module in this package."""
    return peer.load.__module__.rpartition(".")[2]
