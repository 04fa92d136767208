"""What a recipe's int8 settings make of a float graph: ranges from the statistics, layers kept in float, Q/DQ pairs."""

from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from vlmexport.calibrate.statistics import Statistics
from vlmexport.quantize.noise import predicted_ratio
from vlmexport.quantize.products import Product, products
from vlmexport.quantize.ranges import Range, activation_range
from vlmexport.quantize.schemes import find_scheme
from vlmexport.quantize.smooth import Smoothed, smooth
from vlmexport.quantize.static_int8 import Coverage, kept_by_kind, quantize
from vlmexport.recipe import Onnx


class Int8:
    """The int8 half of one export. A layer that two graphs hold is treated alike in both."""

    def __init__(self, settings: Onnx, statistics: Statistics) -> None:
        self.scheme = find_scheme(settings.scheme)
        self.smoothed: list[str] = []
        self.predicted: dict[str, float] = {}
        self._settings = settings
        self._layers = statistics.layers
        self._ranges: dict[str, Range] = {}

    def quantize(self, model: ir.Model) -> Coverage:
        """Quantize a clean float graph in place.

        Raises:
            NotEnoughData: a layer has no statistics.
        """
        for product in products(model):
            if product.path not in self._ranges and product.path in self._layers:
                layer = self._layers[product.path]
                self._ranges[product.path] = activation_range(layer, self._settings.observer, self.scheme)
        ranges = dict(self._ranges)
        smoothed: dict[str, Smoothed] = {}
        if self._settings.smooth:
            smoothed = smooth(model, self._layers, ranges, self.scheme, self._asked)
            self.smoothed += sorted(smoothed)
        ranges |= {path: layer.span for path, layer in smoothed.items()}
        drowned = self._drowned(model, ranges, smoothed)
        return quantize(model, ranges, self.scheme, lambda product: self._asked(product) or drowned.get(product.path))

    def _asked(self, product: Product) -> str | None:
        if any(fnmatchcase(product.path, pattern) for pattern in self._settings.float_layers):
            return "recipe"
        return kept_by_kind(product)

    def _drowned(self, model: ir.Model, ranges: dict[str, Range], smoothed: dict[str, Smoothed]) -> dict[str, str]:
        """Layers whose typical signal would drown in noise, with the predicted ratio."""
        found = {}
        for product in products(model):
            layer = self._layers.get(product.path)
            if layer is None or product.node.op_type != "MatMul" or self._asked(product):
                continue
            assert product.weight.const_value is not None
            weight = np.asarray(product.weight.const_value.numpy(), np.float32)
            scales = smoothed[product.path].scales if product.path in smoothed else None
            ratio = predicted_ratio(weight, layer, ranges[product.path], self.scheme, scales)
            self.predicted[product.path] = round(ratio, 1)
            if ratio < self._settings.float_below_db:
                found[product.path] = f"predicted {ratio:.1f} dB"
        return found
