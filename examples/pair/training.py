"""What the training steps share: the log, the learning-rate schedule, checkpoints."""

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WARMUP_STEPS = 200


class Log:
    """JSON lines: one line a measurement, with the seconds since this process began."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = time.monotonic()

    def write(self, stage: str, step: int, **values: Any) -> None:
        """Append one line."""
        line = {
            "stage": stage,
            "step": step,
            **values,
            "seconds": round(time.monotonic() - self.start),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def make_optimizer(model: nn.Module, peak_rate: float) -> torch.optim.AdamW:
    """AdamW over what is trainable; weight decay on matrices alone."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=peak_rate, betas=(0.9, 0.98), fused=True)


@dataclass(frozen=True)
class Plan:
    """How long, in what portions, how fast and from which seed to train."""

    steps: int
    batch_size: int
    peak_rate: float
    seed: int


class Schedule:
    """Linear warm-up, then cosine to a fiftieth; gradients clipped to norm 1."""

    def __init__(self, optimizer: torch.optim.Optimizer, plan: Plan) -> None:
        self.optimizer = optimizer
        self.plan = plan

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        warmup = max(1, min(WARMUP_STEPS, self.plan.steps // 8))
        decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.plan.steps)))
        return self.plan.peak_rate * min(1.0, (step + 1) / warmup) * decay

    def step(self, step: int, loss: Tensor, model: nn.Module) -> None:
        """Backward, clip, update."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Write model, optimiser and step beside the target, then rename."""
    beside = path.with_suffix(".tmp")
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, beside
    )
    os.replace(beside, path)


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore model and optimiser if there is a checkpoint; return the step to go on from."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
