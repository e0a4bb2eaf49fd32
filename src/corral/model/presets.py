"""Models that Corral knows by a short name: their shapes, their repositories on the Hub, their prompt
families.

The shapes are those of the published config.json files; `plan` computes with them without any download.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from corral.model.config import LlamaConfig, RopeScaling

DEFAULT_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Preset:
    """A published model: its short name, its repository on the Hub, its shape and its prompt family.

    `family` is the prompt family ("llama-3", "llama-3.1", "llama-3.2", "llama-3.3"), or None where the
    checkpoint's own chat template decides. `instruct` is false for base models, which have no chat format.
    """

    name: str
    repo_id: str
    config: LlamaConfig
    family: str | None
    instruct: bool


_LLAMA_3_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    bos_token_id=128000,
    eos_token_ids=(128001,),
)
_LLAMA_3_70B = replace(
    _LLAMA_3_8B, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64
)
_SCALING_8 = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
_SCALING_32 = RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
_LLAMA_3_1_8B = replace(_LLAMA_3_8B, max_position_embeddings=131072, rope_scaling=_SCALING_8)
_LLAMA_3_1_70B = replace(_LLAMA_3_70B, max_position_embeddings=131072, rope_scaling=_SCALING_8)
_LLAMA_3_1_405B = replace(
    _LLAMA_3_1_8B, hidden_size=16384, intermediate_size=53248, num_hidden_layers=126, num_attention_heads=128
)
_LLAMA_3_2_1B = replace(
    _LLAMA_3_1_8B,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    head_dim=64,
    rope_scaling=_SCALING_32,
    tie_word_embeddings=True,
)
_LLAMA_3_2_3B = replace(
    _LLAMA_3_1_8B,
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=28,
    num_attention_heads=24,
    rope_scaling=_SCALING_32,
    tie_word_embeddings=True,
)
_SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=100000.0,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_ids=(2,),
    pad_token_id=2,
)
_SMOLLM2_360M = replace(
    _SMOLLM2_135M,
    hidden_size=960,
    intermediate_size=2560,
    num_hidden_layers=32,
    num_attention_heads=15,
    num_key_value_heads=5,
)
_SMOLLM2_1_7B = replace(
    _SMOLLM2_135M,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=24,
    num_attention_heads=32,
    num_key_value_heads=32,
    rope_theta=130000.0,
)


def _instruct(config: LlamaConfig, family: str) -> LlamaConfig:
    """The published instruct checkpoints list every stop id; Llama 3's has no <|eom_id|>."""
    return replace(
        config, eos_token_ids=(128001, 128009) if family == "llama-3" else (128001, 128008, 128009)
    )


def _llama(name: str, repo_id: str, config: LlamaConfig, family: str, *, base: bool = True) -> list[Preset]:
    instruct = Preset(
        f"{name}-instruct", f"{repo_id}-Instruct", _instruct(config, family), family, instruct=True
    )
    return [instruct, Preset(name, repo_id, config, family, instruct=False)] if base else [instruct]


def _guard(name: str, repo_id: str, config: LlamaConfig, family: str) -> Preset:
    """Guards bring their own chat template, which is not the family's."""
    return Preset(name, repo_id, _instruct(config, family), None, instruct=True)


def _smollm2(size: str, config: LlamaConfig) -> list[Preset]:
    repo_id = f"HuggingFaceTB/SmolLM2-{size}"
    base = replace(config, bos_token_id=0, eos_token_ids=(0,), pad_token_id=None)
    return [
        Preset(f"smollm2-{size.lower()}-instruct", f"{repo_id}-Instruct", config, None, instruct=True),
        Preset(f"smollm2-{size.lower()}", repo_id, base, None, instruct=False),
    ]


_ALL = [
    *_llama("llama-3-8b", "meta-llama/Meta-Llama-3-8B", _LLAMA_3_8B, "llama-3"),
    *_llama("llama-3-70b", "meta-llama/Meta-Llama-3-70B", _LLAMA_3_70B, "llama-3"),
    *_llama("llama-3.1-8b", "meta-llama/Llama-3.1-8B", _LLAMA_3_1_8B, "llama-3.1"),
    *_llama("llama-3.1-70b", "meta-llama/Llama-3.1-70B", _LLAMA_3_1_70B, "llama-3.1"),
    *_llama("llama-3.1-405b", "meta-llama/Llama-3.1-405B", _LLAMA_3_1_405B, "llama-3.1"),
    *_llama("llama-3.2-1b", "meta-llama/Llama-3.2-1B", _LLAMA_3_2_1B, "llama-3.2"),
    *_llama("llama-3.2-3b", "meta-llama/Llama-3.2-3B", _LLAMA_3_2_3B, "llama-3.2"),
    *_llama("llama-3.3-70b", "meta-llama/Llama-3.3-70B", _LLAMA_3_1_70B, "llama-3.3", base=False),
    _guard("llama-guard-2-8b", "meta-llama/Meta-Llama-Guard-2-8B", _LLAMA_3_8B, "llama-3"),
    _guard("llama-guard-3-8b", "meta-llama/Llama-Guard-3-8B", _LLAMA_3_1_8B, "llama-3.1"),
    _guard("llama-guard-3-1b", "meta-llama/Llama-Guard-3-1B", _LLAMA_3_2_1B, "llama-3.2"),
    *_smollm2("135M", _SMOLLM2_135M),
    *_smollm2("360M", _SMOLLM2_360M),
    *_smollm2("1.7B", _SMOLLM2_1_7B),
]

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}


def find_preset(name: str) -> Preset | None:
    """The preset with this short name or Hub repository name; case does not matter."""
    wanted = name.lower()
    for preset in _ALL:
        if wanted in (preset.name, preset.repo_id.lower()):
            return preset
    return None
