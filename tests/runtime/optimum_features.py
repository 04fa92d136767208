"""Visual tokens by optimum's generic model, in an environment of its own: bundle, graph, pixels.npy, result.npy."""

from __future__ import annotations

import sys

import numpy as np
from optimum.onnxruntime import ORTModelForCustomTasks

bundle, graph, pixels, result = sys.argv[1:]
model = ORTModelForCustomTasks.from_pretrained(bundle, subfolder="onnx", file_name=graph)
np.save(result, model(pixel_values=np.load(pixels))["image_features"])
