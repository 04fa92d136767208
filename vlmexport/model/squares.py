"""How the visual tokens of a square view lie; squares of 2x2 features, which some projectors make one token of."""

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
    """One visual token for 2x2 patches.

    Raises:
        Unsupported: the features are no square with even sides; the message says which would do.
    """
    if spec.grid**2 != spec.in_tokens or spec.grid % 2:
        low = max(2, spec.grid - spec.grid % 2)
        raise Unsupported(
            f"{spec.kind} joins 2x2 features; {spec.in_tokens} of them ({spec.grid}x{spec.grid}) do not divide",
            f"use an image size that gives {low}x{low} or {low + 2}x{low + 2} features",
        )
    return spec.grid // 2, spec.grid // 2


def joined(features: torch.Tensor, grid: Grid) -> torch.Tensor:
    """f32 [views, patches, width] → [views, squares, 4 · width]: left-top, right-top, left-bottom, right-bottom.

    Args:
        grid: rows and columns of the squares.
    """
    import torch

    rows, columns = grid
    return torch.unflatten(features, 1, (rows, 2, columns, 2)).transpose(2, 3).flatten(3).flatten(1, 2)
