"""What a run is: every setting of `corral tune`, with its type, bounds and default.

Unknown keys are refused. `corral.tune.config_file` reads YAML and `key=value` into these.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Whole = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

ALL_LINEAR = "all-linear"


class Section(BaseModel):
    """A part of a configuration: nothing else in it than its fields, of just these types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class Source(Section):
    """Rows of one place.

    Attributes:
        path: a .jsonl or .parquet file, a folder that `save_to_disk` of `datasets` wrote, or a data set on
            the Hub as org/name[@revision].
        split: of a data set with several.
        subset: its configuration, where a data set on the Hub has several.
        weight: how often its rows come, relative to their number: 2 takes each twice an epoch, 0.5 half.
        format: what the rows are; None finds out by their columns.
        columns: the names that the rows have for the columns of the format, as {"messages": "dialog"}.
    """

    path: str
    split: str = "train"
    subset: str | None = None
    weight: Positive = 1.0
    format: (
        Literal["messages", "prompt_completion", "text", "preference", "rated", "sharegpt", "alpaca"] | None
    ) = None
    columns: dict[str, str] = {}


class DataConfig(Section):
    """What is trained on, and which of its tokens.

    Attributes:
        train: one place, or several that are mixed.
        eval: held-out rows. Without, `eval_fraction` of the training rows are kept apart.
        eval_fraction: of the training rows, chosen by their content, so that a duplicate is never on both
            sides.
        train_on: the assistant's turns ("assistant"), its last turn ("last"), or everything ("all").
        train_on_eos: whether the token that ends a trained turn is trained ("turn"), that of every turn
            ("all"), that of the last turn only ("last"), or none ("none").
        max_length: tokens of a row, at most; None takes the model's context, up to 2,048.
        overlong: what becomes of longer rows: cut at the end ("truncate"), left out ("drop"), or refused
            ("error").
        packing: short rows share one of `max_length`, isolated from each other.
        prompt_format: as in `corral chat`; None takes the model's own.
        tool_format: how tools are described and called, where the prompt format has several ways.
        system: a system message for dialogs without one.
        shuffle: whether each epoch has an order of its own.
        limit: rows of each source, at most; the first ones.
    """

    train: str | Source | list[str | Source]
    eval: str | Source | list[str | Source] | None = None
    eval_fraction: Share = 0.0
    train_on: Literal["assistant", "last", "all"] = "assistant"
    train_on_eos: Literal["turn", "last", "all", "none"] = "turn"
    max_length: Annotated[int, Field(ge=2)] | None = None
    overlong: Literal["truncate", "drop", "error"] = "truncate"
    packing: bool = True
    prompt_format: str | None = None
    tool_format: str | None = None
    system: str | None = None
    shuffle: bool = True
    limit: Whole | None = None


class ParametersConfig(Section):
    """What is trained: the whole model, or adapters beside it. Names are those of PEFT where it has them.

    Attributes:
        method: "full", "lora" or "dora" (Liu et al., 2024, arXiv:2402.09353).
        base: the frozen weights under an adapter: "nf4" (QLoRA), "int4" or "int8"; None as they are stored,
            but on a CPU unpacked, where they are quantized.
        rank, alpha, dropout: of the adapters; a layer adds alpha / rank * B A dropout(x).
        rslora: divides by the root of the rank instead (Kalajdzievski, 2023, arXiv:2312.03732).
        targets: the names of the linear layers, ends of names or regular expressions of whole names;
            "all-linear" is all but the head.
        rank_pattern, alpha_pattern: other ranks and alphas, by ends of names or regular expressions.
        bias: whether biases of the model are trained: "none", "lora_only" (of adapted layers), or "all".
        adapter: a PEFT folder that training starts from.
    """

    method: Literal["full", "lora", "dora"] = "lora"
    base: Literal["nf4", "int4", "int8"] | None = None
    rank: Whole = 16
    alpha: Positive = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rslora: bool = False
    targets: list[str] | str = ALL_LINEAR
    rank_pattern: dict[str, Whole] = {}
    alpha_pattern: dict[str, Positive] = {}
    bias: Literal["none", "lora_only", "all"] = "none"
    adapter: str | None = None


class DPOConfig(Section):
    """Direct preference optimization (Rafailov et al., 2023, arXiv:2305.18290).

    Attributes:
        loss: "sigmoid", "hinge" (Zhao et al., 2023, arXiv:2305.10425), "ipo" (Azar et al., 2023,
            arXiv:2310.12036), "robust" (Chowdhury et al., 2024, arXiv:2403.00409), or "sigmoid_norm", the
            length-normalised sigmoid.
        beta: how far from the reference.
        label_smoothing: the share of preferences taken to be the wrong way round.
        sft_weight: of the chosen completions' negative log-likelihood beside it (RPO).
        reference: "adapter" runs the model with its adapters off; "cached" computes all log-probabilities
            before training and keeps them in the cache, by the hash of data and model.
    """

    loss: Literal["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm"] = "sigmoid"
    beta: Positive = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    sft_weight: NotNegative = 0.0
    reference: Literal["auto", "adapter", "cached"] = "auto"


class KTOConfig(Section):
    """Kahneman-Tversky optimization (Ethayarajh et al., 2024, arXiv:2402.01306).

    Attributes:
        beta: how far from the reference.
        desirable_weight, undesirable_weight: of the two kinds of completions.
        reference: as for DPO.
    """

    beta: Positive = 0.1
    desirable_weight: Positive = 1.0
    undesirable_weight: Positive = 1.0
    reference: Literal["auto", "adapter", "cached"] = "auto"


class ORPOConfig(Section):
    """Odds-ratio preference optimization (Hong et al., 2024, arXiv:2403.07691); beta is its lambda."""

    beta: Positive = 0.1


class RewardConfig(Section):
    """A reward model by the Bradley-Terry loss; `center` is the weight of (sum of rewards)^2, which keeps
    them near zero (Eisenstein et al., 2023, arXiv:2312.09244)."""

    center: NotNegative = 0.0


class OptimizerConfig(Section):
    """AdamW (Loshchilov and Hutter, 2017, arXiv:1711.05101).

    Attributes:
        name: "adamw", or "adamw_8bit" with its moments in 8 bits (bitsandbytes), and no float32 copy.
        lr: the highest learning rate; None takes 2e-4 for adapters, 2e-5 for whole models, and a tenth of
            these for preferences.
        states: the type of the moments, and of a float32 copy of 16-bit weights where it is float32.
        max_grad_norm: gradients are scaled down to this norm over all parameters; 0 leaves them.
    """

    name: Literal["adamw", "adamw_8bit"] = "adamw"
    lr: Positive | None = None
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    states: Literal["float32", "bfloat16"] = "float32"
    max_grad_norm: NotNegative = 1.0


class ScheduleConfig(Section):
    """The learning rate over the run.

    Attributes:
        kind: after warming up: "cosine", "linear", "constant", or "wsd" (warm up, stay, decay; Hu et al.,
            2024, arXiv:2404.06395).
        warmup: steps, or a share of them below 1.
        decay: of "wsd", likewise.
        min_ratio: the last learning rate, relative to the highest.
    """

    kind: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup: NotNegative = 0.03
    decay: NotNegative = 0.1
    min_ratio: Share = 0.0


class BatchConfig(Section):
    """How many rows a step has: `size` x `accumulation` x devices."""

    size: Whole = 2
    accumulation: Whole = 8


class ComputeConfig(Section):
    """How a step is computed; what it computes stays the same.

    Attributes:
        dtype: of weights and activations; "auto" is bfloat16 where the device is fast with it.
        device: as elsewhere; "auto" is CUDA where there is one.
        threads: of the CPU; None takes one for each core.
        checkpointing: activations that are computed again in the backward pass: none of them ("none"), all
            but each layer's input ("full"), or all but the results of matrix products ("selective"; with
            native kernels on a CPU it is "full").
        compile: `torch.compile` of the layers.
        loss_chunk: rows of logits that exist at once.
        check_memory: whether a run that would not fit, by the arithmetic of `corral plan`, is refused.
    """

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    threads: Whole | None = None
    checkpointing: Literal["none", "selective", "full"] = "none"
    compile: bool = False
    loss_chunk: Whole = 256
    check_memory: bool = True


class ParallelConfig(Section):
    """Many devices: every process of torchrun is one.

    Attributes:
        shard: parameters, gradients and states are sharded over all of them (FSDP2). Off, each has all of
            them, and only gradients travel: right for adapters.
        tensor: devices that share each matrix product; they see the same rows.
        cpu_offload: shards lie in the CPU's memory while not in use.
    """

    shard: bool = False
    tensor: Whole = 1
    cpu_offload: bool = False


class CheckpointsConfig(Section):
    """What is kept to go on from.

    Attributes:
        every: steps between two; None saves at the end only (and when told to stop).
        keep: the last ones that stay.
        keep_best: whether the one with the lowest evaluation loss stays too.
    """

    every: Whole | None = None
    keep: Whole = 2
    keep_best: bool = True


class EvaluationConfig(Section):
    """Measured while training: at the beginning, every so many steps, and at the end.

    Attributes:
        every: steps between two; None for beginning and end only.
        prompts: answered by the engine with the weights of the moment; texts, user messages.
        max_tokens: of such an answer.
    """

    every: Whole | None = None
    prompts: list[str] = []
    max_tokens: Whole = 64


class LoggingConfig(Section):
    """Where measures go beside the run folder's metrics.jsonl.

    Attributes:
        every: steps between two lines.
        to: any of "tensorboard", "wandb" and "trackio"; None is TensorBoard, where tensorboardX is installed.
        project: for those that have projects.
    """

    every: Whole = 1
    to: list[Literal["tensorboard", "wandb", "trackio"]] | None = None
    project: str = "corral"


class RunConfig(Section):
    """A run.

    Attributes:
        model: as elsewhere: a short name, a Hub name, a folder or a file.
        output: the run folder.
        epochs: over the data; may be a fraction. `max_steps` ends a run earlier.
        seed: of the order of rows, the adapters' start, and dropout.
    """

    objective: Literal["sft", "dpo", "kto", "orpo", "reward", "pretrain"] = "sft"
    model: str = "smollm2-135m-instruct"
    output: str = "run"
    data: DataConfig
    parameters: ParametersConfig = ParametersConfig()
    dpo: DPOConfig = DPOConfig()
    kto: KTOConfig = KTOConfig()
    orpo: ORPOConfig = ORPOConfig()
    reward: RewardConfig = RewardConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    batch: BatchConfig = BatchConfig()
    compute: ComputeConfig = ComputeConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()
    epochs: Positive = 1.0
    max_steps: Whole | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain data, those by default included."""
        return self.model_dump(mode="json")
