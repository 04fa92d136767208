"""optimum's ``ORTModelForCustomTasks`` loads a bundle's vision encoder and gives the same image features."""

from __future__ import annotations

import os
import subprocess
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.onnx_bundles import Bundles, picture
from vlmexport.runtime.open import open_runtime

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("optimum_features.py")
ENVIRONMENT = Path(os.environ.get("VLMEXPORT_TEST_OPTIMUM", Path(__file__).parents[2] / ".venv-optimum"))
"""optimum-onnx pins transformers below 4.58, so it has an environment of its own: ``make optimum``."""


@pytest.mark.skipif(not (ENVIRONMENT / "ready").is_file(), reason=f"optimum is not in {ENVIRONMENT}: make optimum")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_optimum(precision: str, onnx_bundle: Bundles, tmp_path: Path) -> None:
    bundle = onnx_bundle(precision)
    with closing(open_runtime(bundle)) as runtime:
        pixels = runtime.pixels(picture(5))
        expected = runtime.tokens(runtime.features(pixels))
    np.save(tmp_path / "pixels.npy", pixels.pixel_values)
    graph = "vision_encoder.onnx" if precision == "fp32" else "vision_encoder_int8.onnx"
    files = [str(bundle), graph, str(tmp_path / "pixels.npy"), str(tmp_path / "features.npy")]
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(ENVIRONMENT / "bin" / "python"), str(SCRIPT), *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environ)
    assert done.returncode == 0, done.stderr
    features = np.load(tmp_path / "features.npy")
    assert features.shape == expected.shape
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
