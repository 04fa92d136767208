"""What is made small: the answers' cross-entropy, and the distance to what a teacher would answer."""

from __future__ import annotations

import torch
from torch.nn import functional


def labels(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of f32 [answers, vocabulary] logits over i64 [answers] targets."""
    return functional.cross_entropy(logits, targets)


def distillation(logits: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean KL divergence in nats from the teacher's distribution, both f32 [answers, vocabulary] over ``temperature``,
    times its square, so that gradients do not shrink with it. Source: Hinton et al. 2015, arXiv:1503.02531."""
    there = functional.log_softmax(teacher / temperature, 1)
    here = functional.log_softmax(logits / temperature, 1)
    return functional.kl_div(here, there, reduction="batchmean", log_target=True) * temperature**2
