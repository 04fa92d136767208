"""Export tiny checkpoints to GGUF, and read back what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch

from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.artifact.gguf.language import importance_names
from vlmexport.calibrate import LayerStatistics, Statistics
from vlmexport.checkpoint.spec import LanguageSpec
from vlmexport.model import plugins
from vlmexport.pipeline import export_checkpoint
from vlmexport.recipe import parse
from vlmexport.source.checkpoint import Checkpoint


def export(
    checkpoint: Checkpoint,
    folder: Path,
    statistics: Statistics | None = None,
    force: bool = False,
    image_weight: float = 0.3,
    **settings: Any,
) -> Manifest:
    """A bundle with the recipe's ``gguf`` section given; no importance matrix unless one is asked for."""
    section = {"imatrix": "none", **settings}
    calibration = {"image_weight": image_weight}
    recipe = parse({"name": "test", "format": "gguf", "gguf": section, "calibration": calibration}, "test")
    return export_checkpoint(checkpoint, recipe, folder, force=force, statistics=statistics)


def random_statistics(spec: LanguageSpec) -> Statistics:
    """Statistics of uneven columns, other ones for image than for text positions."""
    generator, shapes = torch.Generator().manual_seed(1), plugins.language(spec).shapes(spec)
    layers = {}
    for path in importance_names(spec):
        columns = shapes[f"{path.removeprefix('language.')}.weight"][1]
        layers[path] = LayerStatistics(columns)
        rows = torch.randn(24, columns, generator=generator) * torch.rand(columns, generator=generator).exp()
        layers[path].add(rows, torch.arange(24) < 16)
    return Statistics(layers, ("a", "b"))


def tensors(path: Path) -> dict[str, tuple[str, npt.NDArray[np.uint8]]]:
    """Name → type and bytes of every tensor of a file."""
    reader = gguf.GGUFReader(path)
    return {
        tensor.name: (tensor.tensor_type.name.lower(), np.ascontiguousarray(tensor.data).view(np.uint8).reshape(-1))
        for tensor in reader.tensors
    }


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor of a file, the rows' length last."""
    return {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in gguf.GGUFReader(path).tensors}


def metadata(path: Path) -> dict[str, Any]:
    """Key → value of a file."""
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


def value_types(path: Path) -> dict[str, list[str]]:
    """Key → type of its value: ``["STRING"]``, ``["ARRAY", "INT32"]``."""
    return {key: [kind.name for kind in field.types] for key, field in gguf.GGUFReader(path).fields.items()}
