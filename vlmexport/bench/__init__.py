"""Measure what a bundle costs on this machine: time, memory, size, energy."""

from vlmexport.bench.result import BundleBench, Component, Spread
from vlmexport.bench.turns import bench

__all__ = ["BundleBench", "Component", "Spread", "bench"]
