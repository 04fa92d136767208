"""Answers of clients to held-out questions about ``models/tiles``, beside those of transformers' own model.

    python benchmarks/tiles_clients.py [--scenes 20] [--only graphs]

Each scene is asked one question of each kind. transformers.js is asked under Node and in Chromium, about the pictures
as they are and as ``vlmexport prepare`` writes them, of float32 graphs; libmtmd by llama-cpp-python and by xllamacpp's
server, of an F16 bundle. What is counted is the share of answers that are transformers', and of right ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.gguf_bundles import export as export_gguf  # noqa: E402
from tests.runtime.gguf_clients import LlamaCppPython, serve, user  # noqa: E402
from tests.serve import browser  # noqa: E402
from tests.tiles import LONGEST, MODEL, Asked, answered, heldout, texts, with_line_breaks  # noqa: E402
from tests.transformers_js import SCRIPT, ask_node  # noqa: E402
from vlmexport.pipeline import export  # noqa: E402
from vlmexport.prepare import prepare  # noqa: E402
from vlmexport.recipe import resolve  # noqa: E402
from vlmexport.source.checkpoint import open_checkpoint  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "tiles-clients.json"
CLASS = "Idefics3ForConditionalGeneration"
Pairs = list[tuple[Path, str]]
Answered = tuple[str, list[str], list[str]]
"""A client, its answers, and transformers'."""


def pictures(asked: Sequence[Asked], bundle: Path, folder: Path) -> tuple[Pairs, Pairs]:
    """Picture and question, of the pictures as they are and as they are prepared."""
    files = {one.seed: folder / f"{one.seed}.png" for one in asked}
    for one in asked:
        if not files[one.seed].exists():
            one.image().save(files[one.seed])
    ready = {one.source: one.file for one in prepare(bundle, list(files.values()), folder / "ready")}
    return [(files[one.seed], one.text) for one in asked], [(ready[files[one.seed]], one.text) for one in asked]


def of_graphs(asked: Sequence[Asked], folder: Path) -> Iterator[Answered]:
    """transformers.js by itself, not by the page of ``serve``."""
    bundle = export(str(MODEL), resolve("onnx-fp32", environ={}), folder / "fp32")
    theirs = texts(answered(asked))
    for how, pairs in zip(("as they are", "prepared"), pictures(asked, bundle, folder), strict=True):
        found = ask_node(SCRIPT.parent, bundle, pairs, LONGEST, CLASS, timeout=3600)
        yield f"transformers.js, Node, {how}", texts([([], one["tokens"]) for one in found]), theirs
        with (
            sync_playwright() as playwright,
            closing(playwright.chromium.launch(executable_path=browser.CHROMIUM)) as chromium,
            browser.loaded(chromium, bundle, SCRIPT.parent) as page,
        ):
            found = browser.ask_client(page, pairs, LONGEST, CLASS)
        yield f"transformers.js, Chromium, {how}", texts([([], one["tokens"]) for one in found]), theirs


def of_gguf(asked: Sequence[Asked], folder: Path) -> Iterator[Answered]:
    """libmtmd, which cuts pictures itself."""
    model = with_line_breaks(folder / "model")
    export_gguf(open_checkpoint(model), folder / "gguf", type="f16", mmproj_type="f16")
    theirs = texts(answered(asked, model))
    with closing(LlamaCppPython(folder / "gguf")) as client:
        yield "llama-cpp-python", [client.ask(user(one.image(), one.text)).strip() for one in asked], theirs
    with serve(folder / "gguf") as server:
        yield "xllamacpp's server", [server.ask(user(one.image(), one.text)).strip() for one in asked], theirs


def main() -> None:
    """Print a row for each client and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--only", choices=("graphs", "gguf"), help="clients of one kind; rows of the other stay")
    arguments = parser.parse_args()
    asked, browser.PATIENCE = heldout(arguments.scenes), 600_000
    right = [one.answer for one in asked]
    found: dict[str, dict[str, int]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for kind, clients in {"graphs": of_graphs, "gguf": of_gguf}.items():
        if arguments.only not in (None, kind):
            continue
        with TemporaryDirectory() as folder:
            for name, answers, theirs in clients(asked, Path(folder)):
                equal = {"transformers": theirs, "right": right}
                found[name] = {"questions": len(asked), "transformers_right": sum(map(str.__eq__, theirs, right))}
                found[name] |= {other: sum(map(str.__eq__, answers, them)) for other, them in equal.items()}
                print(name, found[name], flush=True)
                RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
