"""Statistics are made once: kept apart by what they are of, and continued where a run was killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.numpy import save as safetensors_of

import vlmexport
from tests.calibrate.pictures import loaded_by, samples
from tests.checkpoints import write_tokenizer
from vlmexport.artifact.bundle.contents import source_of
from vlmexport.calibrate import Sample, Statistics, code, collect
from vlmexport.calibrate.cache import key, sensitivity, statistics
from vlmexport.calibrate.collect import SHARD
from vlmexport.checkpoint.hashes import hash_file
from vlmexport.console import QUIET
from vlmexport.model import load
from vlmexport.source import checkpoint as layout
from vlmexport.source.checkpoint import Checkpoint, open_checkpoint

TOWER = ("vision", "projector")
ALL = (*TOWER, "language")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("VLMEXPORT_CACHE", str(folder))
    return folder


def run(checkpoint: Checkpoint, log: Path, components: tuple[str, ...], count: int = 3) -> Statistics:
    return statistics(checkpoint, samples(count, log), QUIET, components=components)


def test_all_components_serve_for_some(tiny: Checkpoint, tmp_path: Path) -> None:
    whole = run(tiny, tmp_path / "log", ALL)
    part = run(tiny, tmp_path / "log", TOWER)
    assert len(loaded_by(tmp_path / "log")) == 3
    assert part.sha256() == whole.only(TOWER).sha256() != whole.sha256()


def test_some_components_do_not_serve_for_all(tiny: Checkpoint, tmp_path: Path) -> None:
    part = run(tiny, tmp_path / "log", TOWER)
    whole = run(tiny, tmp_path / "log", ALL)
    assert len(loaded_by(tmp_path / "log")) == 6
    assert part.sha256() == whole.only(TOWER).sha256()


def test_damaged_statistics_are_made_anew(tiny: Checkpoint, tmp_path: Path, cache: Path) -> None:
    first = run(tiny, tmp_path / "log", TOWER)
    (path,) = cache.iterdir()
    for damaged in (path.read_bytes()[:100], safetensors_of({})):
        path.write_bytes(damaged)
        assert run(tiny, tmp_path / "log", TOWER).sha256() == first.sha256()


def changed(checkpoint: Checkpoint, folder: Path, file: str = "config.json", **changes: Any) -> Checkpoint:
    """The same weights, another file beside them."""
    shutil.copytree(checkpoint.path, folder, copy_function=os.link, dirs_exist_ok=True)
    before = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).unlink(missing_ok=True)
    (folder / file).write_text(json.dumps(before | changes))
    return open_checkpoint(folder)


CHANGES: dict[str, tuple[dict[str, Any], bool]] = {
    "eps": ({"rms_norm_eps": 1e-3}, False),
    "rope": ({"rope_theta": 500000.0}, False),
    "scaling": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, False),
    "end": ({"eos_token_id": 7}, False),
    "layer": ({"mm_vision_select_layer": -1}, True),
    "crop": ({"image_aspect_ratio": "crop"}, True),
    "mean": ({"file": "preprocessor_config.json", "image_mean": [0.5, 0.5, 0.5], "size": 336, "crop_size": 336}, True),
}
"""Changes beside the weights, and whether what the tower sees changes too."""


@pytest.mark.parametrize("change", CHANGES)
def test_what_else_the_statistics_depend_on(change: str, tiny: Checkpoint, tmp_path: Path) -> None:
    changes, of_tower = CHANGES[change]
    other, chosen = changed(tiny, tmp_path / "other", **changes), samples(2, tmp_path / "log")
    assert other.fingerprints == tiny.fingerprints
    for measurement in ("calibrate.collect", "calibrate.sensitivity"):
        assert key(other, chosen, ALL, measurement) != key(tiny, chosen, ALL, measurement)
    assert (key(other, chosen, TOWER) != key(tiny, chosen, TOWER)) == of_tower


def test_another_tokenizer(tiny: Checkpoint, tmp_path: Path) -> None:
    other, chosen = changed(tiny, tmp_path / "other"), samples(2, tmp_path / "log")
    (other.path / "tokenizer.model").unlink()
    write_tokenizer(other.path, 360)
    assert key(other, chosen) != key(tiny, chosen)
    assert key(other, chosen, TOWER) == key(tiny, chosen, TOWER)


def test_a_change_of_the_config_measures_anew(tiny: Checkpoint, tmp_path: Path) -> None:
    other, log = changed(tiny, tmp_path / "other", rms_norm_eps=1e-3), tmp_path / "log"
    answered = samples(2, log)[1:]
    first, second = (statistics(one, answered, QUIET) for one in (tiny, other))
    assert len(loaded_by(log)) == 2
    assert second.sha256() == collect(load(other), other.prompts, answered).sha256() != first.sha256()
    felt = [sensitivity(one, answered, QUIET) for one in (tiny, other, tiny)]
    assert felt[0].gradients.keys() == felt[1].gradients.keys()
    path = next(name for name, values in felt[0].gradients.items() if values.any())
    assert (felt[0].gradients[path] != felt[1].gradients[path]).any()
    assert (felt[0].gradients[path] == felt[2].gradients[path]).all()


def test_weights_are_hashed_once(tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(layout, "hash_file", lambda path: hashed.append(path) or hash_file(path))
    opened, chosen = open_checkpoint(tiny.path), samples(1, tmp_path / "log")
    keys = {key(opened, chosen, components) for components in (ALL, TOWER)}
    assert len(keys) == 2
    assert source_of(opened).weights == {"model.safetensors": hash_file(tiny.path / "model.safetensors")}
    assert hashed == [tiny.path / "model.safetensors"]


def test_a_copy_under_another_name_is_the_same_model(tiny: Checkpoint, tmp_path: Path) -> None:
    chosen = samples(2, tmp_path / "log")
    assert key(changed(tiny, tmp_path / "other"), chosen) == key(tiny, chosen)


def test_what_the_samples_are(tiny: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    one = Sample("a", "photo.png", "what is it?", lambda: Image.open(file), file=file)
    made = replace(one, file=None, drawn="seed 1")
    plain = replace(one, file=None)
    keys = []
    for colour in ("red", "blue"):
        Image.new("RGB", (8, 8), colour).save(file)
        keys += [key(tiny, [one], TOWER), key(tiny, [plain], TOWER)]  # its bytes, its pixels
    keys += [key(tiny, [replace(made, drawn=f"seed {seed}")], TOWER) for seed in (1, 2)]
    keys += [key(tiny, [replace(made, **change)], TOWER) for change in ({"question": "?"}, {"answer": "it"})]
    assert len(set(keys)) == len(keys)


def test_the_code_that_counts(tiny: Checkpoint) -> None:
    collects = code.modules(tiny.spec, "calibrate.collect", ALL)
    tower, feels = (
        code.modules(tiny.spec, "calibrate.collect", TOWER), code.modules(tiny.spec, "calibrate.sensitivity", ALL)
    )  # fmt: skip
    everywhere = {
        "model.vlm", "model.weights", "model.vision.clip", "model.projector.ldpnetv2", "processing.image",
        "calibrate.collect", "calibrate.recorder", "calibrate.statistics", "checkpoint.tensors", "checkpoint.spec",
        "processing.images", "processing.tokenizer", "checkpoint.rope", "families.original",
    }  # fmt: skip
    assert everywhere <= tower < collects < feels
    assert collects - tower == {"model.language.llama"}
    assert feels - collects == {"calibrate.sensitivity"}
    wrapped = replace(tiny.spec, vision=replace(tiny.spec.vision, kind="s2", variant="siglip:tiny"))
    assert {"model.vision.s2", "model.vision.siglip"} <= code.modules(wrapped, "calibrate.collect", TOWER)
    rooms = ("checkpoint", "processing", "families", "model", "calibrate")
    assert not {name for name in feels if name.split(".")[0] not in rooms}
    assert not feels & {"calibrate.spread", "checkpoint.hub", "model.language.gpt2", "model.projector.qformer"}


def test_an_edit_of_the_code(tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    shutil.copytree(Path(vlmexport.__file__).parent, package, ignore=shutil.ignore_patterns("model.safetensors"))
    monkeypatch.setattr(code, "PACKAGE", package)
    keys, chosen = [], samples(1, tmp_path / "log")
    for edited in ("parity/check.py", "model/projector/qformer.py", "model/vlm.py", "model/vision/clip.py"):
        (package / edited).write_text((package / edited).read_text() + "\n# edited\n")
        code._hash.cache_clear()
        keys.append(key(tiny, chosen, TOWER))
    code._hash.cache_clear()
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


SCRIPT = """
import sys
from pathlib import Path
from tests.calibrate.pictures import samples
from vlmexport.calibrate.cache import statistics
from vlmexport.source.checkpoint import open_checkpoint
from vlmexport.console import QUIET
chosen = samples({count}, Path(sys.argv[2]), pause=0.1)
statistics(open_checkpoint(Path(sys.argv[1])), chosen, QUIET, components={components})
"""


@pytest.mark.slow
def test_a_killed_run_is_continued(tiny: Checkpoint, tmp_path: Path, cache: Path) -> None:
    count, killed, here = 2 * SHARD + 1, tmp_path / "killed", tmp_path / "here"
    script = SCRIPT.format(count=count, components=TOWER)
    process = subprocess.Popen([sys.executable, "-c", script, str(tiny.path), str(killed)])
    while not list(cache.glob("*.partial.safetensors")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert SHARD <= len(loaded_by(killed)) < count
    found = run(tiny, here, TOWER, count)
    assert len(loaded_by(here)) <= count - SHARD
    assert found.sha256() == collect(load(tiny, components=TOWER), tiny.prompts, samples(count, here)).sha256()
    assert [path.name for path in cache.iterdir() if "partial" in path.name] == []


def test_a_damaged_partial_file_is_no_obstacle(tiny: Checkpoint, tmp_path: Path, cache: Path) -> None:
    first = run(tiny, tmp_path / "log", TOWER)
    (path,) = cache.iterdir()
    path.rename(path.with_suffix(".partial.safetensors"))
    path.with_suffix(".partial.safetensors").write_bytes(b"damaged")
    assert run(tiny, tmp_path / "log", TOWER).sha256() == first.sha256()
    assert len(loaded_by(tmp_path / "log")) == 6
