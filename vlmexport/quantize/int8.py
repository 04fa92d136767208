"""What a recipe's int8 settings make of a float graph: how each layer takes its input, then Q/DQ pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType

import onnx_ir as ir

from vlmexport.calibrate.statistics import Statistics
from vlmexport.errors import NotEnoughData
from vlmexport.quantize.bias import correct
from vlmexport.quantize.choice import Choice, Limits, choose, for_avx2
from vlmexport.quantize.observers import activation_range
from vlmexport.quantize.products import Product, products
from vlmexport.quantize.ranges import F32, Range
from vlmexport.quantize.schemes import find_scheme
from vlmexport.quantize.smooth import Group, array, fold, groups
from vlmexport.quantize.static_int8 import Coverage, kept_by_kind, quantize
from vlmexport.recipe import Onnx


@dataclass
class Decisions:
    """Of one graph, by layer path: how its input is taken, or why it stays in float."""

    choices: dict[str, Choice] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    """Layers that read one value and so take it in one way."""


class Int8:
    """The int8 half of one export. A layer that two graphs hold is treated alike in both.

    ``decisions`` are those about the parts of an export, before layers were sent back to float.

    Args:
        of_encoder: patterns of the layers that stay in float because of the kind of encoder, and why.
    """

    def __init__(
        self, settings: Onnx, statistics: Statistics, of_encoder: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.scheme = find_scheme(settings.scheme)
        self.decisions: dict[str, Decisions] = {}
        self._settings, self._of_encoder = settings, of_encoder
        self._sent_back: dict[str, str] = {}
        self._layers = statistics.layers
        self._ranges: dict[str, Range] = {}

    def decide(self, model: ir.Model) -> Decisions:
        """How each layer of a clean float graph is to take its input; the graph stays as it is.

        Raises:
            NotEnoughData: a layer has no statistics.
        """
        settings, found = self._settings, Decisions()
        limits = Limits(settings.twice_below_db, settings.float_below_db)
        wanted = [product.path for product in products(model) if not self._asked(product)]
        found.kept = {product.path: reason for product in products(model) if (reason := self._asked(product))}
        for path in wanted:
            if path not in self._layers:
                raise NotEnoughData(
                    f"{path} has no activation range", "calibrate with this checkpoint, or list it in float_layers"
                )
        found.groups = list(groups(model, self._asked))
        for group in found.groups:
            paths = [member.path for member in group.members]
            foldable = settings.smooth and bool(group.makers)
            weights, span = group.weights, self._range(paths[0])
            choice = choose(weights, self._layers[paths[0]], span, self.scheme, foldable, limits)
            if choice is None:
                found.kept |= dict.fromkeys(paths, "its signal would drown in int8")
                continue
            for path, weight in zip(paths, weights, strict=True):
                found.choices[path] = self._bounded(choice, path, weight)
        for product in products(model):  # convolutions, which stand in no group
            if product.path not in found.choices and product.path not in found.kept:
                choice = Choice(self._range(product.path), None, 1, 0.0, self.scheme)
                if product.is_pointwise:
                    choice = self._bounded(choice, product.path, array(product.weight).reshape(product.shape[:2]).T)
                found.choices[product.path] = choice
        return found

    def _bounded(self, choice: Choice, path: str, weight: F32) -> Choice:
        """A choice for one layer, weight f32 [columns, outputs], on processors that saturate."""
        return for_avx2(choice, weight, self._layers[path]) if self._settings.saturation == "avx2" else choice

    def send_back(self, layers: Mapping[str, str]) -> None:
        """Layers that stay in float whatever was decided, by path, and why; ``apply`` heeds it in every graph."""
        self._sent_back |= layers

    def apply(self, model: ir.Model, decisions: Decisions) -> tuple[Coverage, dict[str, list[str]]]:
        """Quantize the graph that was decided about, in place; what became of its weights, and which layers were
        ``smoothed`` and ``bias_corrected``."""
        kept = decisions.kept | {path: why for path, why in self._sent_back.items() if path in decisions.choices}
        choices = {path: choice for path, choice in decisions.choices.items() if path not in kept}
        done: dict[str, list[str]] = {"smoothed": [], "bias_corrected": []}
        for group in decisions.groups:
            paths = [member.path for member in group.members if member.path in choices]
            scales = choices[paths[0]].scales if len(paths) == len(group.members) else None
            if scales is not None:
                fold(group, scales)
                done["smoothed"] += paths
            for member in group.members if self._settings.bias_correction else ():
                mean = self._layers[member.path].mean
                if member.path in choices and correct(
                    member, mean if scales is None else mean / scales, choices[member.path].scheme
                ):
                    done["bias_corrected"].append(member.path)
        return quantize(
            model, {path: choice.span for path, choice in choices.items()}, self.scheme,
            lambda product: kept.get(product.path),
            {path: f"predicted {c.ratio:.1f} dB" for path, c in choices.items() if c.terms == 2},
            {path: c.scheme.pair_max for path, c in choices.items() if c.scheme.pair_max is not None},
        ), done  # fmt: skip

    def quantize(self, model: ir.Model) -> Coverage:
        """Decide and apply."""
        return self.apply(model, self.decide(model))[0]

    def _range(self, path: str) -> Range:
        if path not in self._ranges:
            self._ranges[path] = activation_range(self._layers[path], self._settings.observer, self.scheme)
        return self._ranges[path]

    def _asked(self, product: Product) -> str | None:
        if any(fnmatchcase(product.path, pattern) for pattern in self._settings.float_layers):
            return "recipe"
        of_encoder = (why for pattern, why in self._of_encoder.items() if fnmatchcase(product.path, pattern))
        return kept_by_kind(product) or next(of_encoder, None)
