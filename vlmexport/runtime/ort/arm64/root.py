"""Where Python and onnxruntime of arm64 are: here on an arm64 machine, else in a folder that QEMU runs them from."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import onnxruntime

from vlmexport.cache import cache_folder
from vlmexport.errors import MissingDependency
from vlmexport.files import PACKAGE
from vlmexport.workers.process import own_python

CORES = ("cortex-a76", "max")
"""QEMU's names. Int8 kernels differ: cortex-a76 has dot products (phones since 2018), max has i8mm too (since 2021)."""

PYTHON = "3.13"
"""Of the Debian release that is unpacked (``arm64_install``)."""

_MACHINES = ("arm64", "aarch64")
_WORKER = "vlmexport.runtime.ort.worker"


def native() -> bool:
    """Whether this machine is arm64 itself, so that nothing is emulated."""
    return platform.machine().lower() in _MACHINES


def root_folder() -> Path:
    """Of the onnxruntime that is installed here; it holds ``qemu-aarch64``, ``debian`` and ``site``."""
    return cache_folder().absolute() / f"arm64-onnxruntime-{onnxruntime.__version__}"


def cores() -> tuple[str, ...]:
    """The cores to run on.

    Raises:
        MissingDependency: this machine is not arm64, and nothing is set up to emulate one.
    """
    if native():
        return ("native",)
    if not root_folder().is_dir():
        raise MissingDependency(
            f"onnxruntime {onnxruntime.__version__} for arm64 is not set up on this {platform.machine()} machine",
            "run `make arm64`, or `python -m vlmexport.runtime.ort.arm64.install`",
        )
    return CORES


def command(root: Path, *arguments: str) -> list[str]:
    """Python of arm64 with arguments; the worker where there are none."""
    if native():
        return [sys.executable, "-P", *arguments] if arguments else own_python(_WORKER)
    arguments = arguments or ("-m", _WORKER)
    debian = root / "debian"
    python = debian / "usr" / "bin" / f"python{PYTHON}"
    return [str(root / "qemu-aarch64"), "-L", str(debian), str(python), "-P", "-s", *arguments]


def environment(root: Path, core: str) -> dict[str, str]:
    """For ``command``. An emulated Python shall not see this one's settings, nor leave its bytecode in our package."""
    if native():
        return dict(os.environ)
    return {
        "QEMU_CPU": core,
        "PYTHONHOME": str(root / "debian" / "usr"),
        "PYTHONPATH": f"{root / 'site'}{os.pathsep}{PACKAGE.parent}",
        "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
