"""Write an ONNX bundle: each component traced, compared, quantized and saved, with what its clients need around it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vlmexport.artifact.bundle.contents import calibration_of, list_files, source_of, tool_versions
from vlmexport.artifact.bundle.halves import GRAPHS, ONNXRUNTIME, DecodingHalf, Role, SeeingHalf
from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.artifact.bundle.write import write_manifest
from vlmexport.artifact.onnx import client_files, tokenizer_file
from vlmexport.artifact.onnx.build.fused_decoder import NEAREST, Rounding
from vlmexport.artifact.onnx.float_graphs import FloatGraphs
from vlmexport.artifact.onnx.graphs import Written, write_graphs
from vlmexport.artifact.onnx.session import FEATURES
from vlmexport.artifact.onnx.sizes import hessian_bytes, sizes
from vlmexport.artifact.onnx.trace import components as trace
from vlmexport.console import Console
from vlmexport.measure import Measured
from vlmexport.model import plugins
from vlmexport.processing.sentencepiece_tokenizer import SentencePieceTokenizer
from vlmexport.recipe import Onnx, Recipe
from vlmexport.source.checkpoint import Checkpoint

TOKENIZER = "tokenizer.json"
_SEEING: tuple[Role, ...] = ("vision_encoder", "projector")


def bytes_needed(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Bytes that a bundle takes while it is made, what is measured for it included."""
    hessians = hessian_bytes(checkpoint.spec.language) if recipe.uses_gptq else 0
    return sum(sizes(checkpoint, recipe.onnx).values()) + hessians


def export_onnx(
    checkpoint: Checkpoint, recipe: Recipe, graphs: FloatGraphs, measured: Measured, folder: Path, console: Console
) -> Manifest:
    """Write what onnxruntime, onnxruntime-genai and transformers.js load, and the manifest, to an empty folder.

    Raises:
        ParityFailed: a traced graph is not the float model.
        Unsupported: a component cannot be traced, or the clients' files cannot hold the model.
    """
    settings, statistics = recipe.onnx, measured.statistics
    tokenizer = tokenizer_file.content(checkpoint)
    image_token = tokenizer_file.image_token_id(checkpoint)
    with ThreadPoolExecutor(1) as pool:
        source = pool.submit(source_of, checkpoint)
        written = write_graphs(
            checkpoint, settings, graphs, image_token, measured.int8, folder, console, _rounding(recipe, measured)
        )
        layout = client_files.Layout(
            checkpoint.spec, image_token, plugins.num_tokens(checkpoint.spec.projector), _special(checkpoint),
            written.suffixes, written.external, has_positions=not settings.fused_decoder,
        )  # fmt: skip
        for name, document in client_files.files(layout).items():
            _write(folder / name, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        _write(folder / TOKENIZER, tokenizer)
        manifest = Manifest(
            source=source.result(),
            recipe=recipe,
            tools=tool_versions("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxsim"),
            calibration=calibration_of(statistics),
            files=list_files(folder, {file: role for role, file in written.files.items()}, written.hashes),
            tensors=written.float_layers,
            seeing=seeing_half(settings, written),
            decoding=_decoding_half(settings, written, image_token),
        )
        write_manifest(folder, manifest)
    return manifest


def seeing_half(settings: Onnx, written: Written) -> SeeingHalf:
    """What the manifest says of the tower and its projector."""
    return SeeingHalf(
        engine=ONNXRUNTIME,
        precision=settings.vision,
        files={role: file for role, file in written.files.items() if role in _SEEING},
        outputs={"features": FEATURES},
        opset=trace.OPSET,
        reports={role: report for role, report in written.reports.items() if role in _SEEING},
    )


def _decoding_half(settings: Onnx, written: Written, image_token: int) -> DecodingHalf:
    """What we run; onnxruntime-genai's decoder is the same over the same weights."""
    graphs = {role: file for role, file in written.files.items() if role in GRAPHS and role not in _SEEING}
    return DecodingHalf(
        engine=ONNXRUNTIME,
        precision=settings.decoder,
        files={**graphs, "tokenizer": TOKENIZER},
        opset=trace.OPSET,
        reports={role: report for role, report in written.reports.items() if role not in _SEEING},
        image_token_id=image_token,
    )


def _rounding(recipe: Recipe, measured: Measured) -> Rounding:
    """What an int4 decoder is rounded by."""
    if measured.hessians is not None:
        return Rounding(hessians=measured.hessians)
    if recipe.onnx.rounding == "search" and measured.statistics is not None:
        layers, weight = measured.statistics.only(("language",)).layers, recipe.calibration.image_weight
        return Rounding({path: layer.importance(weight).astype("f4") for path, layer in layers.items()})
    return NEAREST


def _special(checkpoint: Checkpoint) -> dict[str, str]:
    tokenizer, spec = checkpoint.tokenizer, checkpoint.spec
    texts = tokenizer.texts()
    ids: dict[str, int | None] = {"eos_token": spec.eos_token_id, "pad_token": spec.pad_token_id}
    if tokenizer.bos_token_id is not None:
        ids = {"bos_token": spec.bos_token_id, **ids}
    if isinstance(tokenizer, SentencePieceTokenizer):
        ids["unk_token"] = tokenizer.unknown_token_id
    found = {name: texts[i] for name, i in ids.items() if i in texts}
    return {"pad_token": found["eos_token"], **found}


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
