"""The runs of the tests, by the number of processes."""

from __future__ import annotations

import torch

from tests.tune.parallel.runs import TIED, UNEVEN, Case

CASES = {
    2: {
        "sharded": Case(UNEVEN, sharded=True, checkpointing="full"),
        "sharded, tied, selective": Case(TIED, sharded=True, checkpointing="selective"),
        "sharded, offloaded": Case(UNEVEN, sharded=True, offload=True),
        "replicated": Case(TIED),
        "adapters": Case(UNEVEN, "lora"),
        "adapters, sharded": Case(TIED, "lora", sharded=True, checkpointing="full"),
        "adapters with a head, sharded": Case(UNEVEN, "lora", sharded=True, targets=".*(q_proj|lm_head)"),
        "tensor": Case(UNEVEN, tensor=2, checkpointing="full"),
        "tensor, tied": Case(TIED, tensor=2, checkpointing="selective"),
        "sharded, bfloat16": Case(TIED, sharded=True, dtype=torch.bfloat16),
    },
    4: {
        "4 sharded": Case(UNEVEN, sharded=True),
        "4 data x tensor": Case(UNEVEN, tensor=2),
        "4 sharded x tensor": Case(TIED, sharded=True, tensor=2, checkpointing="full"),
        "4 sharded x tensor, uneven": Case(UNEVEN, sharded=True, tensor=2),
        "4 adapters": Case(TIED, "lora"),
    },
}
CHECKPOINTED = {
    2: {"saved": Case(UNEVEN, sharded=True), "saved adapters": Case(TIED, "lora", sharded=True)},
    4: {"saved x tensor": Case(TIED, sharded=True, tensor=2)},
}
TENSOR = {2: [1], 4: [2]}
"""How many share a matrix where a folder is loaded and written."""
