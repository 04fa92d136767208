"""Set up arm64's onnxruntime on a Debian machine of another kind: ``python -m vlmexport.runtime.ort.arm64.install``.

QEMU and an arm64 Python come from Debian, through the mirror that this machine's apt uses, but with package lists of
our own; onnxruntime's arm64 wheel comes from pip's index, in the version that is installed here. All is unpacked into
the cache folder. Nothing is installed, and root is not needed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import onnxruntime

from vlmexport.console import Console
from vlmexport.errors import MissingDependency, UsageError, VlmExportError
from vlmexport.files import locked
from vlmexport.runtime.ort.arm64.root import CORES, PYTHON, command, environment, native, root_folder

_RELEASE = "trixie"
"""Its QEMU 10 runs onnxruntime; QEMU 7.2 of the release before crashes when onnxruntime is imported."""

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_PACKAGES = (
    f"python{PYTHON}-minimal", f"libpython{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", "libc6", "libstdc++6",
    "libgcc-s1", "zlib1g", "libexpat1", "libffi8",
)  # fmt: skip
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


def install(console: Console) -> Path:
    """Set it up where it is not; a folder that is there is complete.

    Raises:
        MissingDependency: a tool is missing, a server cannot be reached, or what came does not run.
        UsageError: another process is setting it up.
    """
    root = root_folder()
    if root.is_dir():
        return root
    for tool in ("apt-get", "dpkg", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise MissingDependency(f"{tool} is not here, and QEMU comes as a Debian package", "use Debian")
    if not _KEYRING.is_file():
        raise MissingDependency(f"{_KEYRING} is missing", "apt-get install debian-archive-keyring")
    root.parent.mkdir(parents=True, exist_ok=True)
    busy = UsageError(f"another process is setting up {root}", "wait for it")
    with locked(root.with_name(f".{root.name}.lock"), busy):
        _install(root, console)
    return root


def _install(root: Path, console: Console) -> None:
    partial = root.with_name(f".{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        downloads = partial / "downloads"
        downloads.mkdir(parents=True)
        console.note(f"QEMU and Python {PYTHON} for arm64, from Debian {_RELEASE}")
        _debian(downloads, partial)
        console.note(f"onnxruntime {onnxruntime.__version__} for arm64")
        _wheels(partial / "site")
        shutil.rmtree(downloads)
        console.note(f"importing it on {' and '.join(CORES)}")
        _prove(partial)
        os.replace(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _debian(downloads: Path, root: Path) -> None:
    """``qemu-aarch64`` and ``debian``, from packages that apt has verified."""
    mirrors = _run(["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Label: Debian"])
    if not mirrors.split():
        raise MissingDependency("apt knows no mirror of Debian", "run `apt-get update` on a Debian machine, then again")
    here = _run(["dpkg", "--print-architecture"]).strip()
    (downloads / "sources.list").write_text(
        f"deb [arch={here},arm64 signed-by={_KEYRING}] {mirrors.split()[0]} {_RELEASE} main\n"
    )
    apt = ["apt-get", *_options(downloads)]
    _run([*apt, "update"])
    _run([*apt, "download", f"qemu-user:{here}", *(f"{name}:arm64" for name in _PACKAGES)], downloads)
    for package in downloads.glob("*_arm64.deb"):
        _run(["dpkg-deb", "-x", str(package), str(root / "debian")])
    (root / "debian" / "lib").symlink_to("usr/lib")  # the loader's place, which no package holds
    (qemu,) = downloads.glob("qemu-user_*.deb")
    _unpack(qemu, "./usr/bin/qemu-aarch64", root / "qemu-aarch64")


def _options(folder: Path) -> list[str]:
    """apt's own settings (proxies, say), but nothing of its lists, its sources, its pins and what is installed."""
    for name in ("lists", "cache"):
        (folder / name).mkdir()
    settings = {
        "Dir::State::Lists": folder / "lists", "Dir::State::status": os.devnull, "Dir::Cache": folder / "cache",
        "Dir::Etc::SourceList": folder / "sources.list", "Dir::Etc::SourceParts": os.devnull,
        "Dir::Etc::Preferences": os.devnull, "Dir::Etc::PreferencesParts": os.devnull, "APT::Architecture": "arm64",
        "APT::Sandbox::User": "root", "APT::Update::Error-Mode": "any", "Acquire::Languages": "none",
        "Acquire::Retries": 2, "Acquire::http::Timeout": 20,
    }  # fmt: skip
    return [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]


def _unpack(package: Path, name: str, file: Path) -> None:
    """One file of a package that unpacks to half a gigabyte."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with TemporaryFile() as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process:
        assert process.stdout is not None
        with suppress(tarfile.TarError), tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                if member.name == name and (content := archive.extractfile(member)):
                    file.write_bytes(content.read())
        process.stdout.read()  # a pipe that is closed early would end it with an error
        if process.wait():
            log.seek(0)
            raise _failed(command, process.returncode, log.read().decode(errors="replace"))
    if not file.is_file():
        raise MissingDependency(f"{package.name} holds no {name}", "try again, with a network")
    file.chmod(0o755)


def _wheels(folder: Path) -> None:
    """onnxruntime and what it imports, for arm64's Python."""
    wanted = [f"onnxruntime=={onnxruntime.__version__}", f"numpy=={np.__version__}"]
    kind = ["--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}", "--no-compile"]
    platforms = [f"--platform={name}" for name in _PLATFORMS]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    _run([*pip, "--target", str(folder), *kind, *platforms, *wanted])


def _prove(root: Path) -> None:
    """Import it on every core; the first leaves bytecode, without which each start would take seconds more."""
    for core in CORES:
        settings = {k: v for k, v in environment(root, core).items() if k != "PYTHONDONTWRITEBYTECODE"}
        _run(command(root, "-c", "import dataclasses, json, pathlib, platform, onnxruntime"), environment=settings)


def _run(command: list[str], folder: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
    """What a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    if done.returncode:
        raise _failed(command, done.returncode, done.stderr)
    return done.stdout


def _failed(command: list[str], status: int, said: str) -> MissingDependency:
    lines = said.strip().splitlines() or [f"exit code {status}"]
    reason = next((line for line in lines if line.startswith(("E:", "ERROR:"))), lines[-1])
    name = Path(command[0]).name
    return MissingDependency(f"{name} failed while setting up arm64 ({reason})", "try again, with a network")


def main() -> int:
    """Say where it is; an error is one line and an exit code, as everywhere."""
    console = Console()
    if native():
        console.note("this machine is arm64: nothing to set up")
        return 0
    try:
        console.result(str(root := install(console)), str(root))
    except VlmExportError as error:
        console.error(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
