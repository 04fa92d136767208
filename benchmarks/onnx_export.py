"""Export to ONNX with an int4 decoder: vlmexport (all three components) and onnxruntime-genai's builder (language model
alone), in turn.

    python benchmarks/onnx_export.py CHECKPOINT --work DIR --repeat 3 --json onnx.json

The builder gets the language model under a config.json that says Llama; making that folder is not timed. Nothing is
dropped from the page cache: both read warm files after the first turn.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from measure import Figures, compare, run, save


def llama_folder(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint as the builder takes it: the same weight files, a Llama's config and tokenizer settings."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.suffix in (".safetensors", ".bin", ".model") or path.name.endswith(".index.json"):
            os.symlink(path.resolve(), folder / path.name)
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **tokens}))
    return folder


def ours(checkpoint: Path, output: Path, *options: str) -> Figures:
    """``vlmexport onnx``, float tower and int4 decoder."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-c", "from vlmexport.cli import main; main()", "onnx", str(checkpoint)]
    return run([*command, *options, "--output", str(output)])


def builder(checkpoint: Path, output: Path) -> Figures:
    """onnxruntime-genai's builder at its defaults."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu"]
    return run([*command, "-i", str(checkpoint), "-o", str(output), "-c", str(output.parent / "cache")])


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is written; emptied before each run")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    work: Path = arguments.work
    llama = llama_folder(arguments.checkpoint, work / "llama")
    contenders = {
        "vlmexport, all components": lambda: ours(
            arguments.checkpoint, work / "ours", "--precision", "fp32", "--decoder", "int4"
        ),
        "genai builder, language model": lambda: builder(llama, work / "builder"),
    }
    found = compare("ONNX, int4 decoder", contenders, arguments.repeat)
    print(found.table())
    if arguments.json:
        save(arguments.json, [found])
    for name in ("ours", "builder", "llama"):
        shutil.rmtree(work / name, ignore_errors=True)


if __name__ == "__main__":
    main()
