"""Quantize one graph with optimum's ``ORTQuantizer``, static, by one of its presets; runs in optimum's environment.

python benchmarks/optimum_quantize.py GRAPH.onnx PIXELS.npy PRESET FOLDER

PIXELS: f32 [samples, 3, height, width]. Ranges are minima and maxima; everything else is left at optimum's defaults.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Calibrate, quantize, write ``FOLDER/<graph>_quantized.onnx``."""
    from onnxruntime.quantization import CalibrationMethod
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig, CalibrationConfig

    graph, pixels, preset, folder = Path(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    folder.mkdir(parents=True, exist_ok=True)
    quantizer = ORTQuantizer.from_pretrained(graph.parent, file_name=graph.name)
    wanted = getattr(AutoQuantizationConfig, preset)(is_static=True)
    # What AutoCalibrationConfig.minmax makes of a `datasets` data set; its reader takes any iterable.
    observer = CalibrationConfig("pixels", "none", "none", len(pixels), CalibrationMethod.MinMax)
    samples: Any = [{"pixel_values": image} for image in pixels]
    ranges = quantizer.fit(
        samples, observer, folder / "augmented.onnx", operators_to_quantize=wanted.operators_to_quantize
    )
    quantizer.quantize(wanted, folder, calibration_tensors_range=ranges)


if __name__ == "__main__":
    main()
