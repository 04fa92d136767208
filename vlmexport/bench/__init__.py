"""Measure what a bundle costs on this machine: time, memory, size, energy."""

from vlmexport.bench.measure import Request
from vlmexport.bench.result import BundleBench, Component, Spread
from vlmexport.bench.turns import bench, halves

__all__ = ["BundleBench", "Component", "Request", "Spread", "bench", "halves"]
