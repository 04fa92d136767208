"""How many views of pictures calibration saw, those that are tiles and those of a whole picture apart."""

from __future__ import annotations

from dataclasses import dataclass

from vlmexport.processing.prompt import Views


@dataclass(frozen=True)
class ViewCount:
    """Views of pictures: ``tiles`` of them, and ``whole`` pictures. They add up."""

    tiles: int = 0
    whole: int = 0

    @classmethod
    def of(cls, views: Views) -> ViewCount:
        """Those of one picture."""
        rows, columns = views.tiles
        return cls(rows * columns, len(views.grids) - rows * columns)

    def __add__(self, other: ViewCount) -> ViewCount:
        return ViewCount(self.tiles + other.tiles, self.whole + other.whole)
