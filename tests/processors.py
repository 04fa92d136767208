"""Another processor than this one, for a process that a test starts."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vlmexport.errors import MissingDependency
from vlmexport.runtime.ort.arm64.root import cores, native

SOURCE = Path(__file__).with_name("avx2.c")
_UNAVAILABLE = 99


@pytest.fixture(scope="session")
def avx2(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a process that sees a processor with AVX2, and without AVX-512, VNNI and AMX."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("cpuid is made to fault on Linux on x86-64 alone")
    if compiler is None:
        pytest.skip("there is no C compiler")
    library = tmp_path_factory.mktemp("avx2") / "avx2.so"
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE], env=environment, check=True)
    environment["LD_PRELOAD"] = str(library)
    tried = subprocess.run(["/bin/true"], env=environment, capture_output=True, text=True)
    if tried.returncode == _UNAVAILABLE:
        pytest.skip(tried.stderr.strip())
    assert tried.returncode == 0, tried.stderr
    return environment


@pytest.fixture(scope="session")
def emulated() -> None:
    """Skips where nothing is set up to emulate arm64."""
    if native():
        pytest.skip("this machine is arm64: nothing is emulated")
    try:
        cores()
    except MissingDependency as error:
        pytest.skip(str(error))


def run_there(environment: dict[str, str], code: str, *arguments: object) -> str:
    """What Python code writes in such a process."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
