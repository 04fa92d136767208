"""vlmexport against llama.cpp's own way to GGUF: converter to F16, then its quantizer with two threads.

    python benchmarks/gguf_export.py /data/MobileVLM_V2-1.7B /src/llama.cpp --types q4_k_m q4_0 --json gguf.json

Ours exports all of the model (language model and mmproj) with one command and hashes what it writes. The converter
refuses a MobileVLM, so the peer gets what it can take: a folder with the language model alone and an edited config,
written here beforehand and not counted. Both run in turn, on warm caches: nothing is dropped from the page cache
between the runs, and every output is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import Comparison, Figures, compare, run, save

from vlmexport.checkpoint.tensors import LazyTensor, open_tensors

QUANTIZE = """
import ctypes, sys
from llama_cpp import llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.nthread, params.ftype = int(sys.argv[4]), int(sys.argv[3])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(params)))
"""
FILE_TYPES = {"q4_0": 2, "q8_0": 7, "q4_k_s": 14, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}
OURS = "vlmexport: language model and mmproj"
PEER = "llama.cpp: language model alone"


def write_language_model(checkpoint: Path, folder: Path) -> None:
    """A folder that the converter takes: a plain Llama's config, its tensors, the tokenizer."""
    folder.mkdir(parents=True)
    config = json.loads((checkpoint / "config.json").read_text())
    config = {key: value for key, value in config.items() if not key.startswith(("mm_", "use_mm", "image_"))}
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    shutil.copy(checkpoint / "tokenizer.model", folder)
    parts = ("model.vision_tower.", "model.mm_projector.")
    tensors = {name: tensor for name, tensor in open_tensors(checkpoint).items() if not name.startswith(parts)}
    _write_safetensors(folder / "model.safetensors", tensors)


def _write_safetensors(path: Path, tensors: dict[str, LazyTensor]) -> None:
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {"dtype": tensor.dtype.upper(), "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.read_into(np.empty(tensor.nbytes, np.uint8)).data)


def ours(checkpoint: Path, kind: str, folder: Path) -> Figures:
    """One command."""
    bundle = folder / "bundle"
    options = ["--type", kind, "--imatrix", "none", "--output", str(bundle), "--quiet"]
    figures = run([sys.executable, "-m", "vlmexport", "gguf", str(checkpoint), *options])
    shutil.rmtree(bundle)
    return figures


def peer(language_model: Path, llama_cpp: Path, kind: str, threads: int, folder: Path) -> Figures:
    """Two commands: their times added, the larger of their peaks."""
    half, small = folder / "f16.gguf", folder / f"{kind}.gguf"
    script = str(llama_cpp / "convert_hf_to_gguf.py")
    figures = run([sys.executable, script, str(language_model), "--outfile", str(half), "--outtype", "f16"])
    figures += run([sys.executable, "-c", QUANTIZE, str(half), str(small), str(FILE_TYPES[kind]), str(threads)])
    half.unlink()
    small.unlink()
    return figures


def measure(checkpoint: Path, llama_cpp: Path, kinds: list[str], repeat: int, scratch: Path) -> list[Comparison]:
    """A comparison for each type."""
    language_model, threads = scratch / "language-model", os.cpu_count() or 1
    write_language_model(checkpoint, language_model)
    found = []
    for kind in kinds:
        contenders = {
            OURS: lambda kind=kind: ours(checkpoint, kind, scratch),
            PEER: lambda kind=kind: peer(language_model, llama_cpp, kind, threads, scratch),
        }
        found.append(compare(f"{checkpoint.name} → GGUF {kind}, {threads} threads", contenders, repeat))
        print(found[-1].table(), end="\n\n", flush=True)
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of a MobileVLM (see generate.py)")
    parser.add_argument("llama_cpp", type=Path, help="source folder of llama.cpp, for convert_hf_to_gguf.py")
    parser.add_argument("--types", nargs="+", choices=FILE_TYPES, default=["q4_k_m", "q4_0"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="where to write; needs three times the checkpoint's size")
    parser.add_argument("--json", type=Path, help="write all figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch, prefix="gguf-bench-") as scratch:
        found = measure(arguments.checkpoint, arguments.llama_cpp, arguments.types, arguments.repeat, Path(scratch))
    if arguments.json:
        save(arguments.json, found)


if __name__ == "__main__":
    main()
