"""Quantization-aware fine-tuning: forward and backward with rounded weights and inputs, the step on the float ones.

The gradient at the rounded weight is taken for that of the float weight: the straight-through estimator (Bengio et
al. 2013, arXiv:1308.3432). So small steps add up until a weight crosses to its next level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rounding
import torch
from frozen import Features, key, of_tower
from rounding import Round
from torch import nn

from vlmexport.artifact.bundle.halves import LLAMA_CPP
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.errors import UsageError
from vlmexport.model import VLM
from vlmexport.runtime.open import open_runtime
from vlmexport.source.checkpoint import Checkpoint


class FakeQuantization:
    """What a bundle rounds of projector and language model.

    Args:
        checkpoint: that the bundle was made from.

    Raises:
        UsageError: not a bundle, of other weights, or one that rounds nothing of these two.
        Unsupported: something is rounded in a way that no formula of the weights tells.
    """

    def __init__(self, bundle: Path, checkpoint: Checkpoint) -> None:
        self.bundle, self.manifest = bundle, read_manifest(bundle)
        if self.manifest.source.weights != checkpoint.fingerprints:
            raise UsageError(
                f"{bundle} was made from other weights than {checkpoint.path}", "export this model by its recipe first"
            )
        self.weights, self.inputs = rounding.of_bundle(bundle, self.manifest, checkpoint)
        if not self.weights:
            raise UsageError(f"{bundle} rounds no weight of projector or language model", "pass an int8 or int4 bundle")

    @contextmanager
    def applied(self, vlm: VLM) -> Iterator[None]:
        """Within, weights are rounded and inputs pass through rounding; gradients that are computed within are those
        of a step. The float weights come back at the end."""
        held: list[tuple[nn.Parameter, torch.Tensor]] = []
        handles = [vlm.get_submodule(path).register_forward_pre_hook(_hook(one)) for path, one in self.inputs.items()]
        try:
            for name, one in self.weights.items():
                weight = vlm.get_parameter(name)
                held.append((weight, weight.data))
                weight.data = one(weight.data)
            yield
        finally:
            for weight, values in held:
                weight.data = values
            for handle in handles:
                handle.remove()


def _hook(one: Round) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda _, inputs: (one(inputs[0]), *inputs[1:])


def tower(vlm: VLM, checkpoint: Checkpoint, qat: FakeQuantization | None, folder: Path | None, data: str) -> Features:
    """Features as the bundle's own tower computes them where that is int8, else as the float model's does."""
    if qat is None or qat.manifest.seeing.engine == LLAMA_CPP or qat.manifest.recipe.onnx.vision != "int8":
        return of_tower(vlm, checkpoint, folder, data)
    runtime, graph = open_runtime(qat.bundle, qat.manifest), qat.manifest.seeing.file("vision_encoder")
    made = next(file.sha256 for file in qat.manifest.files if file.path == graph)
    return Features(
        lambda image: torch.from_numpy(np.stack(runtime.features(runtime.pixels(image)).views)),
        folder and folder / key(made.encode(), data),
    )
