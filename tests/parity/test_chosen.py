"""What calibration has seen is never used for a verdict, under whatever name it comes back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.manifests import manifest as made
from tests.manifests import source_named
from tests.onnx_bundles import picture
from vlmexport.artifact.bundle.manifest import Calibrated, Manifest
from vlmexport.calibrate.samples import calibration_folder, calibration_hashes, calibration_samples
from vlmexport.errors import NotEnoughData
from vlmexport.parity.samples import choose


def manifest(count: int = 30) -> Manifest:
    ids = [sample.id for sample in calibration_samples(count)]
    calibration = Calibrated(samples=ids, sha256="", images=calibration_hashes(ids))
    return made("onnx", source_named("demo"), calibration=calibration)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """21 new images, and three of the calibration set under other names."""
    for i in range(21):
        picture(i, (30, 20)).save(tmp_path / f"new-{i}.png")
    for i, sample in enumerate(calibration_samples(3)):
        shutil.copy(calibration_folder() / sample.image_id, tmp_path / f"copy-{i}.jpg")
    return tmp_path


def test_copies_of_calibration_images_are_left_out(data: Path) -> None:
    chosen = choose(manifest(), 250, data)
    assert {sample.image_id for sample in chosen.samples} == {f"new-{i}.png" for i in range(21)}
    assert chosen.notes == ("3 samples left out: calibration has seen their images",)
    assert chosen.data == data.name


def test_without_calibration_all_are_new(data: Path) -> None:
    assert len(choose(manifest().model_copy(update={"calibration": None}), 250, data).samples) == 24
    assert len(choose(manifest().model_copy(update={"calibration": None}), 20, data).samples) == 20


def test_too_few_are_left(data: Path) -> None:
    (data / "new-0.png").unlink()
    (data / "new-1.png").unlink()
    with pytest.raises(NotEnoughData, match="19 samples are too few for a verdict \\(3 samples left out"):
        choose(manifest(), 250, data)


def test_the_calibration_set_itself_is_no_data() -> None:
    everything = manifest(len(calibration_samples()))
    with pytest.raises(NotEnoughData, match="0 samples are too few"):
        choose(everything, 250, calibration_folder() / "images")


def test_shipped_samples() -> None:
    chosen = choose(manifest(), 40)
    assert (len(chosen.samples), chosen.data, chosen.notes) == (40, "held-out scenes", ())
