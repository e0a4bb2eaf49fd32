"""Memory arithmetic: what a model takes to serve or to train, and what fits where. Imports no torch.

    plan = make_plan(PRESETS["llama-3.1-8b"].config, Inference(context=8192), parse_devices("1x24GB"))
    plan.fits, plan.total, plan.longest, plan.to_dict()

The formulas and their assumptions are in docs/memory.md.
"""

from corral.plan.devices import Devices, parse_devices
from corral.plan.inference import Inference
from corral.plan.planner import Plan, make_plan
from corral.plan.training import Training

__all__ = ["Devices", "Inference", "Plan", "Training", "make_plan", "parse_devices"]
