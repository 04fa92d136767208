"""Samples → statistics: one streaming pass of the float reference serves every artifact."""

from vlmexport.calibrate.collect import collect
from vlmexport.calibrate.samples import Sample, calibration_samples, heldout_samples
from vlmexport.calibrate.statistics import Histogram, LayerStatistics, Statistics

__all__ = [
    "Histogram",
    "LayerStatistics",
    "Sample",
    "Statistics",
    "calibration_samples",
    "collect",
    "heldout_samples",
]
