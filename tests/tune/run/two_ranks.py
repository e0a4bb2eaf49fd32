"""One of two processes that train a sharded model like a whole one: its rank, and a file to meet at."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from corral.tune.config import OptimizerConfig
from corral.tune.optimizer import Optimizer, global_norm

CONFIGS = {
    "float32": OptimizerConfig(weight_decay=0.1, max_grad_norm=0.5),
    "bfloat16": OptimizerConfig(states="bfloat16"),
}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 33), nn.LayerNorm(33), nn.Linear(33, 5))


def train(
    network: nn.Sequential, config: OptimizerConfig
) -> tuple[list[float], dict[str, Tensor], Optimizer]:
    optimizer = Optimizer(dict(network.named_parameters()), config)
    norms = []
    for step in range(4):
        torch.manual_seed(step)
        network(torch.randn(8, 7)).square().sum().backward()
        norms.append(optimizer.step(1e-2))
        optimizer.zero_grad()
    whole = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in network.named_parameters()}
    return norms, whole, optimizer


def main() -> None:
    rank, meeting = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    for config in CONFIGS.values():
        expected, weights, _ = train(model(), config)
        sharded = model()
        for layer in sharded:
            fully_shard(layer)
        fully_shard(sharded)
        norms, shards, optimizer = train(sharded, config)
        torch.testing.assert_close(norms, expected, rtol=1e-5, atol=0.0)
        for name, weight in weights.items():
            torch.testing.assert_close(shards[name], weight, rtol=1e-3, atol=1e-6)
        spread = [name for name, kept in optimizer.state_dict().items() if isinstance(kept, DTensor)]
        assert len(spread) == 2 * len(weights), "moments are spread as parameters are"
    mesh = next(p.device_mesh for p in sharded.parameters() if isinstance(p, DTensor))
    same_everywhere = distribute_tensor(torch.full((4,), 2.0), mesh, [Replicate()])
    assert abs(global_norm([same_everywhere, torch.full((1,), 3.0)]) - 5) < 1e-6, "what all have counts once"
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
