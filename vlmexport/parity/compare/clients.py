"""The pixels that clients of an ONNX bundle make by its files: Python's transformers, and transformers.js."""

from __future__ import annotations

from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from vlmexport.artifact.bundle.halves import ONNXRUNTIME
from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.checkpoint.spec import ImageProcessorSpec
from vlmexport.errors import CheckpointError, UsageError, VlmExportError
from vlmexport.measures.stage_result import GateResult, StageResult
from vlmexport.parity.compare.node import TransformersJs
from vlmexport.runtime.stages import F32

More = Literal["node"]
"""A client that is run where it is asked for."""

SIZES = ((640, 360), (360, 640), (1, 1), (1, 48), (48, 1), (337, 335), (2400, 1600))
"""Width and height of the pictures that every bundle's pixels stage is held against too: landscape, portrait, tiny,
strips, one off the usual size, large."""

_LEVELS = 3
"""Of 255, by which torchvision's resize may differ from Pillow's: it rounds otherwise. Measured: 2."""

_FILE = "processor_config.json"
"""What Python's transformers reads; transformers.js and the runtime here read ``preprocessor_config.json``."""


class Client(Protocol):
    """Makes pixels as a client does.

    Attributes:
        name: what its measures are called by.
    """

    name: str

    def pixels(self, image: Image.Image) -> F32:
        """RGB image → [views, 3, height, width].

        Raises:
            VlmExportError: the client cannot read the bundle's files, or make pixels of the image.
        """

    def close(self) -> None:
        """End what runs."""


class Transformers:
    """The image processor that Python's transformers makes of a bundle's files.

    Args:
        backend: what computes it: ``pil``, or ``torchvision``, which transformers takes where it is installed.
    """

    def __init__(self, bundle: Path, backend: Literal["pil", "torchvision"]) -> None:
        self.name: str = backend
        self._bundle = bundle

    @cached_property
    def _processor(self) -> Any:
        from transformers import AutoImageProcessor

        try:
            return AutoImageProcessor.from_pretrained(
                str(self._bundle.resolve()), backend=self.name, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever it raises about a file that is not as it expects
            raise CheckpointError(
                f"transformers cannot read the image processor of {self._bundle} ({error})", "export the bundle again"
            ) from error

    def pixels(self, image: Image.Image) -> F32:
        """RGB image → [views, 3, height, width]; some processors put the number of conversations before that."""
        processor = self._processor
        try:
            found = np.asarray(processor(images=image, return_tensors="np")["pixel_values"], np.float32)
            return found.reshape(-1, *found.shape[-3:])
        except Exception as error:  # the settings are a stranger's
            raise VlmExportError(
                f"transformers' image processor fails on a picture of {image.width}x{image.height} ({error})",
                "export the bundle again",
            ) from error

    def close(self) -> None:
        """Nothing runs."""


def open_clients(bundle: Path, manifest: Manifest, more: More | None = None) -> list[Client]:
    """Those whose pixels are measured; what the first one makes is what the stages behind it are fed. None where the
    runtime itself is what clients run (llama.cpp), or where transformers is not installed.

    Args:
        more: one to run as well.

    Raises:
        UsageError: it does not run such a bundle.
        MissingDependency: it is not installed.
    """
    if more is not None and manifest.seeing.engine != ONNXRUNTIME:
        raise UsageError(f"--client {more} does not run a {manifest.kind} bundle", "leave it out")
    clients: list[Client] = []
    if find_spec("transformers") is not None and (bundle / _FILE).is_file():
        clients.append(Transformers(bundle, "pil"))
        if find_spec("torchvision") is not None:
            clients.append(Transformers(bundle, "torchvision"))
    if more is not None:
        if not clients:
            raise UsageError(f"{bundle} has no {_FILE}, or transformers is not installed", f"leave out --client {more}")
        clients.append(TransformersJs(bundle))
    return clients


def client_gates(stages: list[StageResult], spec: ImageProcessorSpec) -> list[GateResult]:
    """Of torchvision, where it was measured: it may round a value of 255 otherwise, and no more than that. Pixels are
    float32, in which three levels are a little more than three."""
    metric, bound = "torchvision_max_abs", (_LEVELS + 0.01) / 255 / min(spec.std)
    return [
        GateResult(
            stage=stage.stage, mode=stage.mode, metric=metric, value=stage.metrics[metric], bound=bound,
            at_least=False, passed=stage.metrics[metric] <= bound,
        )
        for stage in stages
        if metric in stage.metrics
    ]  # fmt: skip
