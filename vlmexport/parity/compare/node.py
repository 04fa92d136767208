"""transformers.js under Node: one process that makes pixels of picture files, one a line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from vlmexport.errors import MissingDependency, VlmExportError
from vlmexport.extras import TRANSFORMERS_JS, npm_install
from vlmexport.runtime.stages import F32
from vlmexport.workers.deadline import Watch, deadline

FOLDER = "VLMEXPORT_NODE"
"""Variable that names the folder whose node_modules holds transformers.js; else it is the current one."""

_SCRIPT = """
import fs from 'node:fs';
import path from 'node:path';
import readline from 'node:readline';
import { AutoImageProcessor, RawImage, env } from '@huggingface/transformers';
const bundle = process.argv[1];
env.allowRemoteModels = false;
env.localModelPath = path.dirname(bundle);
const processor = await AutoImageProcessor.from_pretrained(path.basename(bundle));
for await (const picture of readline.createInterface({ input: process.stdin })) {
  try {
    const { pixel_values } = await processor(await RawImage.read(picture));
    fs.writeFileSync(picture + '.f32', Buffer.from(Float32Array.from(pixel_values.data).buffer));
    console.log(JSON.stringify(pixel_values.dims));
  } catch (error) {
    console.log(JSON.stringify(String(error.message)));
  }
}
"""


class TransformersJs:
    """The image processor that transformers.js makes of a bundle's files.

    Raises:
        MissingDependency: Node or transformers.js is not installed.
    """

    name = "transformers_js"

    def __init__(self, bundle: Path) -> None:
        folder, node = Path(os.environ.get(FOLDER, ".")).resolve(), shutil.which("node")
        if node is None:
            raise MissingDependency("Node is not installed", "install Node.js 20 or later, or leave out --client node")
        if not (folder / "node_modules" / TRANSFORMERS_JS).is_dir():
            raise MissingDependency(
                f"transformers.js is not installed in {folder}",
                f"{npm_install(folder)}, or name its folder by {FOLDER}",
            )
        self._scratch = tempfile.TemporaryDirectory()
        self._picture = Path(self._scratch.name) / "picture.png"
        self._complaints = (Path(self._scratch.name) / "stderr").open("w+b")
        self._process = subprocess.Popen(
            [node, "--input-type=module", "-e", _SCRIPT, str(bundle.resolve())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints, cwd=folder,
        )  # fmt: skip
        self._watch = Watch(self._process, deadline())

    def pixels(self, image: Image.Image) -> F32:
        """RGB image → [views, 3, height, width].

        Raises:
            VlmExportError: transformers.js cannot read the bundle's files or make pixels of the image, or it died
                or did not answer.
        """
        image.save(self._picture, compress_level=1)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            with self._watch:
                self._process.stdin.write(f"{self._picture}\n".encode())
                self._process.stdin.flush()
                shape = json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            raise VlmExportError(
                f"transformers.js cannot make pixels by the bundle's files ({self._complaint()})",
                "export the bundle again, or leave out --client node",
            ) from error
        if isinstance(shape, str):
            raise VlmExportError(
                f"transformers.js cannot make pixels of a picture of {image.width}x{image.height} ({shape})",
                "leave out such pictures, or --client node",
            )
        return np.fromfile(f"{self._picture}.f32", np.float32).reshape(-1, *shape[-3:])

    def _complaint(self) -> str:
        """The line of its last words that names the error."""
        if self._watch.expired:
            return f"it did not answer within {self._watch.seconds:g} seconds, and was ended"
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").splitlines()
        return next((line for line in lines if "Error" in line), "it ended")

    def close(self) -> None:
        """End Node."""
        self._watch.close()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what it was not told before it died
                    pipe.close()
        self._process.kill()
        self._process.wait()
        self._complaints.close()
        self._scratch.cleanup()
