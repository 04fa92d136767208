"""Statistics of the inputs of the linear layers. They add up: ``a + b`` is the statistics of both sample sets."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save_file

from vlmexport.calibrate.views import ViewCount
from vlmexport.compiled import compiled

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
Bool = npt.NDArray[np.bool_]
BINS = 4096
_FINEST = -100  # of the exponents of bins: their reciprocals stay within float32
_LANES = 4  # histograms filled in turn: values that follow each other often fall into one bin
_ODD = np.random.default_rng(0).integers(0, 2**31, 64, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
_PARTS = ("abs_max", "sum_sq_image", "sum_sq_text", "sum", "histogram", "counts", "range", "rows", "keys")
ROWS = 16
"""Rows of a layer's input that are kept as they are, for what columns and histogram cannot tell."""


@dataclass
class Histogram:
    """Counts in ``BINS`` equal bins around zero, of a width that is a power of two.

    The width is the smallest power of two with which ±BINS/2 bins hold every value seen. A larger value doubles the
    width and adds bins pairwise, so a histogram does not depend on the order of the samples, and two of them can be
    added exactly.
    """

    exponent: int | None = None
    counts: I64 = field(default_factory=lambda: np.zeros(BINS, np.int64))

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2.0 ** (self.exponent or 0)

    @property
    def edges(self) -> F64:
        """f64 [BINS + 1] edges of the bins."""
        return (np.arange(BINS + 1, dtype=np.float64) - BINS // 2) * self.width

    @property
    def centres(self) -> F64:
        """f64 [BINS] centres of the bins."""
        return (np.arange(BINS, dtype=np.float64) - BINS // 2 + 0.5) * self.width

    def widen(self, largest: float) -> None:
        """Make the bins wide enough for values up to ±largest."""
        if largest == 0.0:
            self.coarsen(self.exponent if self.exponent is not None else _FINEST)
        else:
            self.coarsen(max(math.floor(math.log2(largest / (BINS // 2))) + 1, _FINEST))

    def coarsen(self, exponent: int) -> None:
        """Make bins at least 2**exponent wide."""
        if self.exponent is None:
            self.exponent = exponent
        half = BINS // 2
        while self.exponent < exponent:
            if not self.counts.any():
                self.exponent = exponent
                return
            merged = np.zeros_like(self.counts)
            merged[half // 2 : half + half // 2] = self.counts.reshape(half, 2).sum(1)
            self.counts = merged
            self.exponent += 1

    def __add__(self, other: Histogram) -> Histogram:
        exponents = [h.exponent for h in (self, other) if h.exponent is not None]
        if not exponents:
            return Histogram()
        parts = [Histogram(h.exponent, h.counts.copy()) for h in (self, other)]
        for part in parts:
            part.coarsen(max(exponents))
        return Histogram(max(exponents), parts[0].counts + parts[1].counts)


@dataclass
class LayerStatistics:
    """What went into one layer. Columns are its input features (channels for a convolution).

    Σx² and counts are kept apart for image and for text positions; in vision and projector all are image. Of all rows
    f32 [≤ ROWS, columns] ``rows`` are kept: those with the smallest hashes u32 ``keys``, so whatever the order and the
    shards the same ones, and each only once however often it occurs.
    """

    columns: int
    minimum: float = math.inf
    maximum: float = -math.inf
    histogram: Histogram = field(default_factory=Histogram)
    abs_max: F64 = field(default_factory=lambda: np.zeros(0))
    sum_sq_image: F64 = field(default_factory=lambda: np.zeros(0))
    sum_sq_text: F64 = field(default_factory=lambda: np.zeros(0))
    sum: F64 = field(default_factory=lambda: np.zeros(0))
    count_image: int = 0
    count_text: int = 0
    rows: F32 = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    keys: U32 = field(default_factory=lambda: np.zeros(0, np.uint32))

    def __post_init__(self) -> None:
        for name in ("abs_max", "sum_sq_image", "sum_sq_text", "sum"):
            if getattr(self, name).size == 0:
                setattr(self, name, np.zeros(self.columns))
        if self.rows.size == 0:
            self.rows = np.zeros((0, self.columns), np.float32)

    def add(self, rows: npt.ArrayLike, is_image: npt.ArrayLike | None = None) -> None:
        """Add f32 [rows, columns], at least one row; ``is_image`` bool [rows], all image where it is None.

        Raises:
            ValueError: not finite.
        """
        values = np.ascontiguousarray(rows, np.float32)
        of_image = np.ones(len(values), np.bool_) if is_image is None else np.asarray(is_image, np.bool_)
        low, high = values.min(0), values.max(0)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError("not finite")
        self.minimum = min(self.minimum, float(low.min()))
        self.maximum = max(self.maximum, float(high.max()))
        self.abs_max = np.maximum(self.abs_max, np.maximum(-low, high).astype(np.float64))
        self.histogram.widen(float(max(-low.min(), high.max())))
        counts = np.zeros((_LANES, BINS), np.uint32)
        width = np.float32(1 / self.histogram.width)
        _tally(values, width, of_image, counts, self.sum_sq_image, self.sum_sq_text, self.sum)
        self.histogram.counts += counts.sum(0, dtype=np.int64)
        self.count_image += int(of_image.sum())
        self.count_text += int((~of_image).sum())
        self.rows, self.keys = _fewest((self.rows, values), (self.keys, _hashes(values)))

    @property
    def mean(self) -> F64:
        """f64 [columns]: mean over all positions."""
        return self.sum / max(self.count_image + self.count_text, 1)

    def importance(self, image_weight: float = 1.0) -> F64:
        """f64 [columns]: mean x² where image positions weigh ``image_weight`` and text positions 1."""
        total = image_weight * self.count_image + self.count_text
        if not total:
            return np.zeros(self.columns)
        return (image_weight * self.sum_sq_image + self.sum_sq_text) / total

    def __add__(self, other: LayerStatistics) -> LayerStatistics:
        rows, keys = _fewest((self.rows, other.rows), (self.keys, other.keys))
        return LayerStatistics(
            columns=self.columns,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            histogram=self.histogram + other.histogram,
            abs_max=np.maximum(self.abs_max, other.abs_max),
            sum_sq_image=self.sum_sq_image + other.sum_sq_image,
            sum_sq_text=self.sum_sq_text + other.sum_sq_text,
            sum=self.sum + other.sum,
            count_image=self.count_image + other.count_image,
            count_text=self.count_text + other.count_text,
            rows=rows,
            keys=keys,
        )


def _hashes(rows: F32) -> U32:
    """u32 [rows], from the bits of up to 64 values of each."""
    columns = np.unique(np.linspace(0, rows.shape[1] - 1, 64).astype(int))
    bits = np.ascontiguousarray(rows[:, columns]).view(np.uint32)
    mixed = (bits ^ bits >> np.uint32(15)) * _ODD[: len(columns)]
    total = mixed.sum(1, dtype=np.uint32)
    found: U32 = (total ^ total >> np.uint32(13)) * _ODD[0]
    return found


def _fewest(rows: tuple[F32, F32], keys: tuple[U32, U32]) -> tuple[F32, U32]:
    """The ``ROWS`` rows with the smallest keys of both, each key once; the first one's where both have it."""
    found, index = np.unique(np.concatenate(keys), return_index=True)
    kept, first = index[:ROWS], len(keys[0])
    picked = [rows[0][i] if i < first else rows[1][i - first] for i in kept]
    return np.array(picked, np.float32).reshape(-1, rows[0].shape[1]), found[:ROWS]


@compiled
def _tally(values: F32, scale: np.float32, of_image: Bool, counts: U32, image: F64, text: F64, plain: F64) -> None:
    """Add every value to its bin, itself and its square to its column. A value on an edge belongs to the bin above it.

    Args:
        scale: 1 / width of a bin; times a power of two is exact.
        counts: u32 [_LANES, BINS].
        image, text: f64 [columns] Σx² of image and of text positions.
        plain: f64 [columns] Σx.
    """
    index = np.empty(values.shape[1], np.uint32)
    for r in range(values.shape[0]):
        _add_powers(values[r], plain, image if of_image[r] else text)
        _bins_of(values[r], scale, np.int32(counts.shape[1] // 2), index)
        _count(index, counts)


@compiled
def _add_powers(row: F32, plain: F64, squares: F64) -> None:
    for c in range(row.size):
        value = np.float64(row[c])
        plain[c] += value
        squares[c] += value * value


@compiled
def _bins_of(row: F32, scale: np.float32, half: np.int32, index: U32) -> None:
    for c in range(row.size):
        scaled = row[c] * scale
        whole = np.int32(scaled)
        index[c] = np.uint32(whole - np.int32(scaled < np.float32(whole)) + half)  # floor, in vectors


@compiled
def _count(index: U32, counts: U32) -> None:
    even = index.size // _LANES * _LANES
    for c in range(0, even, _LANES):
        for lane in range(_LANES):
            counts[lane, index[c + lane]] += np.uint32(1)
    for c in range(even, index.size):
        counts[0, index[c]] += np.uint32(1)


@dataclass
class Statistics:
    """Statistics by layer path (``<component>.<canonical module name>``, as in ``model.VLM``); views weigh alike."""

    layers: dict[str, LayerStatistics] = field(default_factory=dict)
    samples: tuple[str, ...] = ()
    views: ViewCount = field(default_factory=ViewCount)

    def __add__(self, other: Statistics) -> Statistics:
        layers = dict(self.layers)
        for name, layer in other.layers.items():
            layers[name] = layers[name] + layer if name in layers else layer
        return Statistics(layers, self.samples + other.samples, self.views + other.views)

    def only(self, components: tuple[str, ...]) -> Statistics:
        """Those of some components' layers."""
        layers = {name: layer for name, layer in self.layers.items() if name.split(".")[0] in components}
        return Statistics(layers, self.samples, self.views)

    def sha256(self) -> str:
        """Hex digest of the samples' names and of all that was counted in layers."""
        digest = hashlib.sha256("\n".join(self.samples).encode())
        for name, array in sorted(self._arrays().items()):
            digest.update(name.encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write to a safetensors file."""
        told = {"names": self.samples, "tiles": self.views.tiles, "whole": self.views.whole}
        # one key: safetensors writes several in an order that differs from run to run
        save_file(self._arrays(), path, metadata={"samples": json.dumps(told)})

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, layer in self.layers.items():
            arrays[f"{name}/abs_max"] = layer.abs_max
            arrays[f"{name}/sum_sq_image"] = layer.sum_sq_image
            arrays[f"{name}/sum_sq_text"] = layer.sum_sq_text
            arrays[f"{name}/sum"] = layer.sum
            arrays[f"{name}/rows"], arrays[f"{name}/keys"] = layer.rows, layer.keys
            arrays[f"{name}/histogram"] = layer.histogram.counts
            arrays[f"{name}/counts"] = np.array(
                [layer.count_image, layer.count_text, layer.histogram.exponent or 0], np.int64
            )
            arrays[f"{name}/range"] = np.array([layer.minimum, layer.maximum])
        return arrays

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what ``save`` wrote."""
        layers = {}
        with safe_open(path, framework="np") as file:
            for name in sorted({key.rsplit("/", 1)[0] for key in file.keys()}):  # noqa: SIM118
                get = {part: file.get_tensor(f"{name}/{part}") for part in _PARTS}
                image, text, exponent = (int(value) for value in get["counts"])
                layers[name] = LayerStatistics(
                    len(get["abs_max"]), float(get["range"][0]), float(get["range"][1]),
                    Histogram(exponent, get["histogram"]), get["abs_max"], get["sum_sq_image"], get["sum_sq_text"],
                    get["sum"], image, text, get["rows"], get["keys"],
                )  # fmt: skip
            told = json.loads((file.metadata() or {})["samples"])
        return cls(layers, tuple(told["names"]), ViewCount(told["tiles"], told["whole"]))
