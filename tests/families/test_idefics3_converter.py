"""GGUF of Idefics3 and SmolVLM against llama.cpp's own converter and quantizer: bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.families.test_idefics3_fine_tunes import padded
from tests.families.test_idefics3_fine_tunes import tuned as fine_tune
from tests.gguf_bundles import metadata, random_statistics, tensors, value_types
from tests.llama_quantize import llama_quantize
from tests.smolvlm import write_model
from tests.smolvlm_gguf import written
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.artifact.gguf.decoding import GgufDecoding
from vlmexport.artifact.gguf.imatrix_reader import read
from vlmexport.console import QUIET
from vlmexport.measure import Measured
from vlmexport.quantize.gguf_mix import find_mix, mixes
from vlmexport.recipe import resolve
from vlmexport.source.checkpoint import open_checkpoint

pytestmark = pytest.mark.slow

CONVERT = """
import json, sys
root, orders = sys.argv[1], json.loads(sys.argv[2])
sys.path[:0] = [root, root + "/gguf-py"]
from conversion.base import TextModel
import convert_hf_to_gguf
TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"
for order in orders:
    sys.argv = ["convert_hf_to_gguf.py", *order]
    convert_hf_to_gguf.main()
"""
"""llama.cpp's converter, several times. It knows a pre-tokenizer by the ids that a published vocabulary gives to a
text; this vocabulary is a tiny one."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles") / "smolvlm"
    write_model(folder, "smolvlm")
    return folder


def edit(folder: Path, name: str, **changes: Any) -> None:
    """Values of a section of ``config.json``; None takes a key out."""
    config = json.loads((folder / "config.json").read_text())
    config[name] = {key: value for key, value in (config[name] | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def named(folder: Path, copy: Path) -> Path:
    """A copy whose language model's section names its class."""
    shutil.copytree(folder, copy)
    edit(copy, "text_config", architectures=["LlamaForCausalLM"])
    return copy


@pytest.fixture(scope="module")
def theirs(saved: Path, converter: Path) -> dict[str, Path]:
    """What llama.cpp's converter makes of the checkpoint, of each name: ``mmproj`` or ``language`` and a type.

    It does not take a language model whose section names no class, as transformers saves it: here it names one. In
    ``silent`` the tower says no epsilon.
    """
    told = named(saved, saved.with_name("told"))
    silent = Path(shutil.copytree(saved, saved.with_name("silent")))
    edit(silent, "vision_config", layer_norm_eps=None)
    found, orders = {}, []
    for kind in ("f32", "f16", "q8_0"):
        for name, source, options in (("mmproj", saved, ["--mmproj"]), ("language", told, [])):
            found[f"{name}-{kind}"] = saved.with_name(f"theirs-{name}-{kind}.gguf")
            orders.append([*options, str(source), "--outtype", kind, "--outfile", str(found[f"{name}-{kind}"])])
    tuned = named(padded(fine_tune(saved.with_name("tuned"), "idefics3")).folder, saved.with_name("tuned-told"))
    for name, options in (("mmproj", ["--mmproj"]), ("language", [])):
        found[f"tuned-{name}"] = saved.with_name(f"theirs-tuned-{name}.gguf")
        orders.append([*options, str(tuned), "--outtype", "f16", "--outfile", str(found[f"tuned-{name}"])])
    found["silent"] = saved.with_name("theirs-silent.gguf")
    orders.append(["--mmproj", str(silent), "--outtype", "f32", "--outfile", str(found["silent"])])
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, str(converter), json.dumps(orders)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return found


OURS_ALONE = {"general.tags", "general.quantized_by"}
"""Who made the file, and of what kind it is."""
DIFFERENT = {
    # the folder's name as it is; they write words of it
    "mmproj": OURS_ALONE | {"general.name"},
    # how to sample where a request says nothing; a tokenizer that puts no BOS before a text, which they leave to the
    # default of its kind, and name one all the same
    "language": OURS_ALONE | {"general.name", "general.sampling.temp", "tokenizer.ggml.add_bos_token",
                              "tokenizer.ggml.add_eos_token", "tokenizer.ggml.bos_token_id",
                              "tokenizer.chat_template"},
}  # fmt: skip
"""Keys by which the files differ. The chat template: ``test_clients_write_the_prompt_of_the_processor``."""


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("part", ["mmproj", "language"])
def test_it_is_what_llama_cpps_converter_makes(part: str, kind: str, saved: Path, theirs: dict[str, Path]) -> None:
    check_files(part, written(saved, kind), theirs[f"{part}-{kind}"])


@pytest.mark.parametrize("part", ["mmproj", "language"])
def test_so_it_is_of_a_fine_tune(part: str, saved: Path, theirs: dict[str, Path]) -> None:
    """Of float16 weights, with tokens that were added and rows up to a multiple."""
    check_files(part, written(saved.with_name("tuned"), "f16"), theirs[f"tuned-{part}"])


def check_files(part: str, folder: Path, other: Path) -> None:
    """The same tensors byte for byte, and the same keys with values of the same types."""
    half = read_manifest(folder).seeing if part == "mmproj" else read_manifest(folder).decoding
    ours = folder / half.file(part)
    found, expected = tensors(ours), tensors(other)
    assert {name: of for name, (of, _) in found.items()} == {name: of for name, (of, _) in expected.items()}
    assert all(np.array_equal(data, expected[name][1]) for name, (_, data) in found.items())
    known, types = (metadata(path) for path in (ours, other)), [value_types(path) for path in (ours, other)]
    one, two = known
    counted = {
        "GGUF.kv_count",
        "general.quantization_version",
    }  # they write the latter into files without a quantum too
    differ = {key for key in one.keys() | two.keys() if one.get(key) != two.get(key)} - counted
    assert differ == DIFFERENT[part]
    assert all(types[0][key] == types[1][key] for key in one.keys() & two.keys())


def test_an_epsilon_that_is_not_said_is_that_of_transformers(saved: Path, theirs: dict[str, Path]) -> None:
    """llama.cpp's converter would write 1e-5, but has transformers read the config, which says 1e-6."""
    folder = written(saved.with_name("silent"))
    for file in (theirs["silent"], folder / read_manifest(folder).seeing.file("mmproj")):
        assert metadata(file)["clip.vision.attention.layer_norm_epsilon"] == pytest.approx(1e-6)


LONG = ("iq2_s", "iq3_xxs")
"""libggml makes tables of them for seconds; tests/quantize/test_gguf_mix.py compares them, too."""


@pytest.mark.parametrize("kind", [name for name in mixes() if name not in ("f32", *LONG)])
def test_every_type_is_what_llama_cpp_makes(kind: str, saved: Path, tmp_path: Path) -> None:
    """The same metadata, types and bytes, from our F32 file and our importance matrix."""
    checkpoint = open_checkpoint(saved)
    given = {"gguf.type": kind, "gguf.imatrix": "auto" if find_mix(kind).file_type else "none"}
    decoder = GgufDecoding(checkpoint, resolve("gguf-f32", given, environ={}), 0)
    measured = Measured(statistics=random_statistics(checkpoint.spec.language))
    decoder.settle(measured, QUIET)
    half = decoder.write(measured, tmp_path, lambda _: lambda _: None).half
    ours, matrix = tmp_path / half.file("language"), tmp_path / "imatrix.gguf"
    means = {name: column.mean for name, column in read(matrix).columns.items()} if matrix.exists() else None
    bundle = written(saved)
    source = bundle / read_manifest(bundle).decoding.file("language")
    assert llama_quantize(source, tmp_path / "theirs.gguf", find_mix(kind).file_type, means)
    expected, found = tensors(tmp_path / "theirs.gguf"), tensors(ours)
    assert {name: of for name, (of, _) in found.items()} == {name: of for name, (of, _) in expected.items()}
    assert all(np.array_equal(data, expected[name][1]) for name, (_, data) in found.items())
