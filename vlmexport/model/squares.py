"""Squares of 2x2 features, which some projectors make one visual token of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmexport.checkpoint.spec import ProjectorSpec
from vlmexport.errors import Unsupported

if TYPE_CHECKING:
    import torch


def half_grid(spec: ProjectorSpec) -> int:
    """Squares of 2x2 features along one side.

    Raises:
        Unsupported: the features are no square with even sides; the message says which would do.
    """
    if spec.grid**2 != spec.in_tokens or spec.grid % 2:
        low = max(2, spec.grid - spec.grid % 2)
        raise Unsupported(
            f"{spec.kind} joins 2x2 features; {spec.in_tokens} of them ({spec.grid}x{spec.grid}) do not divide",
            f"use an image size that gives {low}x{low} or {low + 2}x{low + 2} features",
        )
    return spec.grid // 2


def quarter(spec: ProjectorSpec) -> int:
    """Squares in all: a quarter of the patches; errors as ``half_grid``."""
    return half_grid(spec) ** 2


def joined(features: torch.Tensor, half: int) -> torch.Tensor:
    """f32 [images, patches, width] → [images, squares, 4 · width]: left-top, right-top, left-bottom, right-bottom."""
    import torch

    return torch.unflatten(features, 1, (half, 2, half, 2)).transpose(2, 3).flatten(3).flatten(1, 2)
