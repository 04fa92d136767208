"""What a recipe's int8 settings make of a float graph: ranges from the statistics, layers kept in float, Q/DQ pairs."""

from __future__ import annotations

from fnmatch import fnmatchcase

import onnx_ir as ir

from vlmexport.calibrate.statistics import Statistics
from vlmexport.quantize.products import Product, products
from vlmexport.quantize.ranges import Range, activation_range
from vlmexport.quantize.schemes import find_scheme
from vlmexport.quantize.static_int8 import Coverage, kept_by_kind, quantize
from vlmexport.recipe import Onnx


class Int8:
    """The int8 half of one export; ranges are computed once for all graphs that hold a layer."""

    def __init__(self, settings: Onnx, statistics: Statistics) -> None:
        self.scheme = find_scheme(settings.scheme)
        self._settings = settings
        self._statistics = statistics
        self._ranges: dict[str, Range] = {}

    def quantize(self, model: ir.Model) -> Coverage:
        """Quantize a clean float graph in place."""
        for product in products(model):
            if product.path not in self._ranges and product.path in self._statistics.layers:
                layer = self._statistics.layers[product.path]
                self._ranges[product.path] = activation_range(layer, self._settings.observer, self.scheme)
        return quantize(model, self._ranges, self.scheme, self._keep)

    def _keep(self, product: Product) -> str | None:
        if any(fnmatchcase(product.path, pattern) for pattern in self._settings.float_layers):
            return "recipe"
        return kept_by_kind(product)
