"""The decoding half of an ONNX bundle: the embedding of the tokens, the decoder, and the tokenizer's file."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from vlmexport.artifact.bundle.halves import GRAPHS, ONNXRUNTIME, DecodingHalf, Role
from vlmexport.artifact.bundle.writing import Progress, Written
from vlmexport.artifact.onnx import tokenizer_file
from vlmexport.artifact.onnx.build import embedding, fused_decoder
from vlmexport.artifact.onnx.build.fused_decoder import NEAREST, Rounding
from vlmexport.artifact.onnx.documents import documents
from vlmexport.artifact.onnx.float_graphs import FloatGraphs
from vlmexport.artifact.onnx.genai import runs
from vlmexport.artifact.onnx.graphs import GraphWriter
from vlmexport.artifact.onnx.sizes import decoder_sizes
from vlmexport.artifact.onnx.trace import components as trace
from vlmexport.artifact.onnx.trace.silent import SILENT
from vlmexport.console import Console
from vlmexport.measure import Measured
from vlmexport.model import plugins
from vlmexport.recipe import Recipe
from vlmexport.source.checkpoint import Checkpoint

TOKENIZER = "tokenizer.json"


class OnnxDecoding:
    """``onnx/embed_tokens.onnx``, ``onnx/decoder_model_merged*.onnx``, both again for onnxruntime-genai where it runs
    such models, and ``tokenizer.json``.

    Raises:
        Unsupported: an int4 or float16 decoder of a kind that has none.
    """

    tools = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")
    notes = ()

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, graphs: FloatGraphs) -> None:
        self._checkpoint, self._recipe, self._settings, self._graphs = checkpoint, recipe, recipe.onnx, graphs
        self._image_token = tokenizer_file.image_token_id(checkpoint)
        self.sizes: dict[Role, int] = decoder_sizes(checkpoint, self._settings)

    @cached_property
    def _tokenizer(self) -> str:
        return tokenizer_file.content(self._checkpoint)

    def refuse(self) -> None:
        """Make the clients' files on trial.

        Raises:
            Unsupported: they cannot hold the model.
        """
        _ = self._tokenizer
        documents(self._checkpoint, self._settings, ())

    def settle(self, measured: Measured, console: Console) -> None:
        """A decoder that is not built is traced with the tower."""
        if not self._settings.fused_decoder:
            self._graphs.trace()

    def write(self, measured: Measured, folder: Path, progress: Progress) -> Written[DecodingHalf]:
        """All files, and what the manifest says of what we run; onnxruntime-genai's decoder is the same over the same
        weights."""
        settings, genai = self._settings, runs(self._checkpoint)
        writer = GraphWriter(self._graphs, measured.int8, folder, progress, genai)
        with SILENT:
            self._embedding(writer)
            if settings.fused_decoder:
                built = fused_decoder.build(self._checkpoint, self._held(), self._rounding(measured))
                writer.decoder(built, settings.decoder)
            else:
                writer.part("language", settings.decoder)
        (folder / TOKENIZER).write_text(self._tokenizer, encoding="utf-8", newline="\n")
        half = DecodingHalf(
            engine=ONNXRUNTIME,
            precision=settings.decoder,
            files={role: file for role, file in writer.files.items() if role in GRAPHS} | {"tokenizer": TOKENIZER},
            opset=trace.OPSET,
            reports=writer.reports,
            image_token_id=self._image_token,
        )
        return Written(half, writer.roles, writer.hashes, writer.float_layers)

    def _embedding(self, writer: GraphWriter) -> None:
        """Token embeddings and, for onnxruntime-genai, their merge with image features; both read one table."""
        table = plugins.token_table(self._checkpoint).torch()
        module = embedding.Embedding(table, max(table.shape[0], self._image_token + 1))
        writer.checked("embed_tokens", embedding.alone(module))
        if writer.genai:
            merged = embedding.merged(module, self._image_token)
            writer.share("embedding", "embed_tokens", merged.model, "fp32")
            writer.checked("embedding", merged)

    def _held(self) -> fused_decoder.Weights:
        """How a fused decoder holds its weights."""
        settings = self._settings
        return fused_decoder.HALF if settings.decoder == "fp16" else fused_decoder.Weights(
            settings.block, head_bits=settings.head_bits
        )  # fmt: skip

    def _rounding(self, measured: Measured) -> Rounding:
        """What an int4 decoder is rounded by."""
        if measured.hessians is not None:
            return Rounding(hessians=measured.hessians)
        if self._settings.rounding == "search" and measured.statistics is not None:
            layers, weight = measured.statistics.only(("language",)).layers, self._recipe.calibration.image_weight
            return Rounding({path: layer.importance(weight).astype("f4") for path, layer in layers.items()})
        return NEAREST
