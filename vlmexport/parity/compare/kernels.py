"""The int8 kernels that a bundle ran on, and how many of its layers can lose something by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vlmexport.artifact.bundle.halves import ONNXRUNTIME
from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.artifact.onnx.read.int8_layers import int8_products
from vlmexport.runtime.int8_kernels import Int8Kernels, kernels_of


def bundle_kernels(runtime: object, bundle: Path, manifest: Manifest) -> Int8Kernels | None:
    """Those of a runtime that has this bundle open; None where nothing in it is int8."""
    kernels = kernels_of(runtime)
    paths = sorted(path for path in manifest.graphs().values())
    products = {product.name: product for path in paths for product in int8_products(bundle / path)}
    if kernels is None or (manifest.decoding.engine == ONNXRUNTIME and not products):
        return None
    if not kernels.saturates:
        return kernels
    return replace(kernels, layers=sum(product.can_saturate() for product in products.values()))
