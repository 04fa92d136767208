"""How the visual tokens of a square view lie; squares of features, which some projectors make one token of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmexport.checkpoint.spec import ProjectorSpec
from vlmexport.errors import Unsupported
from vlmexport.processing.prompt import Grid

if TYPE_CHECKING:
    import torch


def unchanged(spec: ProjectorSpec) -> Grid:
    """One visual token for each patch; in one row where they are no square (a class token is among them)."""
    return (spec.grid, spec.grid) if spec.grid**2 == spec.in_tokens else (1, spec.in_tokens)


def halved(spec: ProjectorSpec) -> Grid:
    """One visual token for 2x2 patches; errors as ``divided``."""
    return divided(spec, 2)


def divided(spec: ProjectorSpec, side: int) -> Grid:
    """One visual token for each square of patches.

    Args:
        side: patches along one side of it.

    Raises:
        Unsupported: the features are no square, or squares do not divide it; the message says which would do.
    """
    if spec.grid**2 != spec.in_tokens or spec.grid % side:
        low = max(side, spec.grid - spec.grid % side)
        raise Unsupported(
            f"{spec.kind} joins {side}x{side} features; {spec.in_tokens} of them ({spec.grid}x{spec.grid}) do not "
            "divide",
            f"use an image size that gives {low}x{low} or {low + side}x{low + side} features",
        )
    return spec.grid // side, spec.grid // side


def joined(features: torch.Tensor, grid: Grid, side: int = 2) -> torch.Tensor:
    """f32 [views, patches, width] → [views, squares, side · side · width], row by row in a square as well.

    Args:
        grid: rows and columns of the squares.
        side: patches along one side of a square.
    """
    import torch

    rows, columns = grid
    return torch.unflatten(features, 1, (rows, side, columns, side)).transpose(2, 3).flatten(3).flatten(1, 2)
