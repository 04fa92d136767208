"""GGUF of InternVL against llama.cpp's own converter: bytes, but for the table of positions, which is repaired."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.families.test_idefics3_converter import CONVERT
from tests.gguf_bundles import metadata, tensors, value_types
from tests.internvl import new_model, processor, tokenizer, write_own
from tests.smolvlm_gguf import written
from vlmexport.artifact.bundle.manifest import read_manifest

pytestmark = pytest.mark.slow

TYPES = ("f32", "f16", "q8_0")
POSITIONS = "v.position_embd.weight"


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OpenGVLab's layout, which that converter takes as it is."""
    tokens = tokenizer()
    root = tmp_path_factory.mktemp("converter")
    return write_own(root / "own", new_model(request.param, tokens), processor(tokens))


@pytest.fixture(scope="module")
def theirs(saved: Path, converter: Path) -> dict[str, Path]:
    """What llama.cpp's converter makes of the checkpoint, of each name: ``mmproj`` or ``language`` and a type."""
    found, orders = {}, []
    for kind in TYPES:
        for name, options in (("mmproj", ["--mmproj"]), ("language", [])):
            found[f"{name}-{kind}"] = saved.with_name(f"theirs-{name}-{kind}.gguf")
            orders.append([*options, str(saved), "--outtype", kind, "--outfile", str(found[f"{name}-{kind}"])])
    script = CONVERT.replace('"smollm"', '"qwen2"')
    done = subprocess.run(
        [sys.executable, "-c", script, str(converter), json.dumps(orders)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return found


OURS_ALONE = {"general.tags", "general.quantized_by", "general.name"}
SIZES = ("vocab_size", "rope.dimension_count", "attention.key_length", "attention.value_length")
"""Sizes that they leave to the defaults of an architecture, some of them of ``qwen2`` alone."""

DIFFERENT = {
    "mmproj": OURS_ALONE,
    # how to sample where a request says nothing; a tokenizer that puts no EOS behind a text; the README's conversation
    "language": OURS_ALONE | {"general.sampling.temp", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token",
                              "tokenizer.chat_template"},
}  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("part", ["mmproj", "language"])
def test_it_is_what_llama_cpps_converter_makes(part: str, kind: str, saved: Path, theirs: dict[str, Path]) -> None:
    folder = written(saved, kind)
    half = read_manifest(folder).seeing if part == "mmproj" else read_manifest(folder).decoding
    ours, other = folder / half.file(part), theirs[f"{part}-{kind}"]
    found, expected = tensors(ours), tensors(other)
    assert {name: of for name, (of, _) in found.items()} == {name: of for name, (of, _) in expected.items()}
    differ = {name for name, (_, data) in found.items() if not np.array_equal(data, expected[name][1])}
    assert differ == ({POSITIONS} if part == "mmproj" else set())
    if differ:
        rows = [of[POSITIONS][1].view(np.float32).reshape(17, -1) for of in (found, expected)]
        np.testing.assert_array_equal(rows[0], np.roll(rows[1], -1, axis=0))
    one, two = (metadata(path) for path in (ours, other))
    types = [value_types(path) for path in (ours, other)]
    counted = {"GGUF.kv_count", "general.quantization_version"}
    differing = {key for key in one.keys() | two.keys() if one.get(key) != two.get(key)} - counted
    sizes = {key for key in differing if key.partition(".")[2] in SIZES}
    assert sizes <= one.keys() - two.keys()
    assert differing - sizes == DIFFERENT[part]
    assert all(types[0][key] == types[1][key] for key in one.keys() & two.keys())
