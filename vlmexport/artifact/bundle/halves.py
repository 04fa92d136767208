"""The two halves of a bundle as its manifest tells them: the engine of each, its files, and what they hold."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from vlmexport.artifact.bundle.inside import InnerPath
from vlmexport.artifact.bundle.models import Part
from vlmexport.artifact.bundle.staging import MANIFEST
from vlmexport.errors import CheckpointError

ONNXRUNTIME, LLAMA_CPP = "onnxruntime", "llama.cpp"
"""Engines."""

Role = Literal[
    "vision_encoder", "projector", "mmproj", "embed_tokens", "decoder_model_merged", "language", "tokenizer",
    "embedding", "decoder", "imatrix",
]  # fmt: skip
"""What a file is for."""

LABELS: dict[Role, str] = {
    "vision_encoder": "vision+projector", "projector": "projector (for parity)", "mmproj": "vision+projector",
    "embed_tokens": "embedding", "decoder_model_merged": "decoder", "language": "language",
    "embedding": "embedding (for onnxruntime-genai)", "decoder": "decoder (for onnxruntime-genai)",
    "imatrix": "importance matrix",
}  # fmt: skip
"""Role → what people read. A file that holds no weights of the model has none."""

VISION: tuple[Role, ...] = ("vision_encoder", "mmproj")
DECODER: tuple[Role, ...] = ("embed_tokens", "decoder_model_merged", "language")
"""Files with the weights that an answer takes, by half."""

GRAPHS: tuple[Role, ...] = ("decoder_model_merged", "embed_tokens", "projector", "vision_encoder")
"""ONNX graphs that are run, in the order in which reports go through them."""


class GraphReport(Part):
    """How an ONNX graph was made."""

    precision: str
    nodes: int
    fused: dict[str, int] | None = Field(None, description="ONNX Runtime's operator → how many took a pattern's place.")
    scheme: str | None = None
    nodes_float: int | None = Field(None, description="Before it was quantized.")
    int8_share: float | None = Field(None, description="Part of the weights' bytes.")
    two_terms: dict[str, str] | None = Field(None, description="Layers that read their input as two terms, and why.")
    pair_max: dict[str, int] | None = Field(None, description="Layers whose pairs of weights are bounded.")
    smoothed: list[str] | None = Field(None, description="Layers that SmoothQuant's scales were folded into.")
    bias_corrected: list[str] | None = None


class TensorChoice(Part):
    """What a tensor got under a budget, and the bytes and predicted loss (nats) of every type that was tried."""

    tensor: str
    type: str
    bytes: int
    tried: dict[str, tuple[int, float]]


class Budget(Part):
    """How a budget was spent."""

    tensor_bytes: int
    predicted_kld: float = Field(description="Nats.")
    tensors: list[TensorChoice]


class _Half(Part):
    engine: str = Field(description="What runs it.")
    precision: str = Field(description="Of its weights: fp32, int8, int4, fp16, a type of GGUF, or a budget.")
    files: dict[Role, InnerPath] = Field(default_factory=dict, description="What the engine opens.")
    opset: int | None = Field(None, description="Of ONNX graphs.")
    reports: dict[Role, GraphReport] = Field(default_factory=dict, description="ONNX graph → how it was made.")

    def file(self, role: Role) -> str:
        """The path of what the engine opens for this.

        Raises:
            CheckpointError: it names none.
        """
        return _present(self.files, role)


class SeeingHalf(_Half):
    """Vision encoder and projector."""

    outputs: dict[str, str] = Field(default_factory=dict, description="Stage → the value inside of a graph.")

    def output(self, stage: str) -> str:
        """The value inside of the vision encoder's graph that is a stage.

        Raises:
            CheckpointError: it names none.
        """
        return _present(self.outputs, stage)


class DecodingHalf(_Half):
    """Language model and tokenizer."""

    image_token_id: int | None = Field(None, description="That clients put where visual tokens go.")
    budget: Budget | None = None


def _present(named: dict[Any, str], key: str) -> str:
    if key not in named:
        raise CheckpointError(f"{MANIFEST} lacks {key}", "export the bundle again")
    return named[key]
