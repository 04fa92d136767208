"""Muon: momentum whose matrices are made orthogonal (Jordan et al. 2024), in float32 and in stacks of one shape.

torch.optim.Muon works in bfloat16 and one matrix at a time, which is slow on a CPU without bfloat16 units. A step
has twice the size of an AdamW step (0.2·√max(shape) per unit of rate, Liu et al. 2025), so both share one schedule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def orthogonal(stack: Tensor, steps: int = 4) -> Tensor:
    """Newton–Schulz: [n, rows, columns] with rows ≤ columns → the nearest semi-orthogonal matrices, roughly."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = stack / (stack.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """For 2-D weights of hidden layers; everything else belongs to AdamW."""

    def __init__(self, params: Iterable[Tensor], momentum: float = 0.95, weight_decay: float = 0.02) -> None:
        super().__init__(params, {"lr": 1e-3, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step with Nesterov momentum."""
        for group in self.param_groups:
            stacks: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                average = state.setdefault("momentum", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(average, group["momentum"])
                flat = update if update.shape[0] <= update.shape[1] else update.T
                stacks[(flat.shape[0], flat.shape[1])].append((parameter, flat))
            for (_, longest), pairs in stacks.items():
                updates = orthogonal(torch.stack([flat for _, flat in pairs]))
                for (parameter, _), update in zip(pairs, updates, strict=True):
                    turned = update if parameter.shape[0] <= parameter.shape[1] else update.T
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(turned, alpha=-group["lr"] * 0.4 * longest**0.5)
