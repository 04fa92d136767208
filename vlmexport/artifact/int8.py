"""What a recipe's int8 settings make of a float graph: ranges from the statistics, layers kept in float, Q/DQ pairs."""

from __future__ import annotations

from fnmatch import fnmatchcase

import onnx_ir as ir

from vlmexport.calibrate.statistics import Statistics
from vlmexport.quantize.choice import Limits, choose
from vlmexport.quantize.products import Product, products
from vlmexport.quantize.ranges import Range, activation_range
from vlmexport.quantize.schemes import find_scheme
from vlmexport.quantize.smooth import fold, groups
from vlmexport.quantize.static_int8 import Coverage, kept_by_kind, quantize
from vlmexport.recipe import Onnx


class Int8:
    """The int8 half of one export. A layer that two graphs hold is treated alike in both."""

    def __init__(self, settings: Onnx, statistics: Statistics) -> None:
        self.scheme = find_scheme(settings.scheme)
        self.smoothed: list[str] = []
        """Layers that were smoothed in the graph quantized last."""
        self._settings = settings
        self._layers = statistics.layers
        self._ranges: dict[str, Range] = {}

    def quantize(self, model: ir.Model) -> Coverage:
        """Quantize a clean float graph in place.

        Raises:
            NotEnoughData: a layer has no statistics.
        """
        settings = self._settings
        limits = Limits(settings.twice_below_db, settings.float_below_db)
        ranges = {p.path: self._range(p.path) for p in products(model) if p.path in self._layers}
        kept: dict[str, str] = {}
        twice: dict[str, str] = {}
        self.smoothed = []
        for group in list(groups(model, self._asked)):
            paths = [member.path for member in group.members]
            if paths[0] not in ranges:
                continue
            layer, foldable = self._layers[paths[0]], settings.smooth and bool(group.makers)
            choice = choose(group.weights, layer, ranges[paths[0]], self.scheme, foldable, limits)
            if choice is None:
                kept |= dict.fromkeys(paths, "its signal would drown in int8")
                continue
            if choice.scales is not None:
                fold(group, choice.scales)
                self.smoothed += paths
            if choice.terms == 2:
                twice |= dict.fromkeys(paths, f"predicted {choice.ratio:.1f} dB")
            ranges |= dict.fromkeys(paths, choice.span)
        return quantize(model, ranges, self.scheme, lambda p: self._asked(p) or kept.get(p.path), twice)

    def _range(self, path: str) -> Range:
        if path not in self._ranges:
            layer = self._layers[path]
            self._ranges[path] = activation_range(layer, self._settings.observer, self.scheme)
        return self._ranges[path]

    def _asked(self, product: Product) -> str | None:
        if any(fnmatchcase(product.path, pattern) for pattern in self._settings.float_layers):
            return "recipe"
        return kept_by_kind(product)
