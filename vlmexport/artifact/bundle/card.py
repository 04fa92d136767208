"""The model card of a bundle: what it is, how to run it, and its parity table."""

from __future__ import annotations

from vlmexport.artifact.bundle.halves import Budget
from vlmexport.artifact.bundle.manifest import Manifest
from vlmexport.artifact.bundle.summary import CoreSummary, ParitySummary, StockSummary, ViewsSummary
from vlmexport.text import markdown, markdown_code

_COLUMNS = {
    "pixels": ("max_abs",),
    "features": ("cosine", "cosine_p1", "sqnr_db"),
    "tokens": ("cosine", "cosine_p1", "sqnr_db"),
    "logits": ("kld", "agreement", "top1", "max_abs"),
    "answer": ("agreement", "equal", "accuracy", "reference_accuracy", "cider_d", "reference_cider_d"),
}
_RUN = {
    "onnx": "Files are laid out for transformers.js{}; "
    "`vlmexport run . --image IMAGE QUESTION` asks it, `vlmexport serve .` in the browser.",
    "hybrid": "The vision encoder runs on ONNX Runtime; its visual tokens go into llama.cpp as embeddings. "
    "`vlmexport run . --image IMAGE QUESTION` asks it.",
    "gguf": "Pass `--jinja` to llama.cpp's tools, so that the embedded template is used; "
    "`vlmexport run . --image IMAGE QUESTION` asks it.",
}
_CLASSES = (
    "It answers with one of {} classes (`config.json`), after one pass of the graphs in `onnx/`; "
    "`vlmexport run . --image IMAGE QUESTION` asks it."
)


def number(value: float) -> str:
    """A measure as people read it: fixed digits near one, exponent where tiny."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.5g}"
    return f"{value:.2e}"


def _genai(manifest: Manifest) -> str:
    """The other client, where there are graphs for it."""
    return " and onnxruntime-genai" if any(file.role == "embedding" for file in manifest.files) else ""


def card(manifest: Manifest) -> str:
    """Markdown."""
    recipe = manifest.recipe
    size = sum(file.bytes for file in manifest.files) / 1e6
    lines = [
        f"# {markdown(manifest.source.name)}, {markdown(recipe.name)}",
        "",
        f"Exported by vlmexport from {markdown_code(manifest.source.name)} ({markdown(manifest.source.layout)} layout) "
        f"for {recipe.target}: {manifest.kind.upper()}, {size:.1f} MB.",
        "",
        _CLASSES.format(len(manifest.classes)) if manifest.classes else _RUN[manifest.kind].format(_genai(manifest)),
        "",
        "## Parity with the float model",
        "",
        *_parity(manifest.parity),
        "",
        "## Files",
        "",
        "| file | component | bytes | sha256 |",
        "|---|---|---|---|",
        *(
            f"| {markdown_code(f.path)} | {markdown(f.label or '')} | {f.bytes:,} | `{f.sha256[:16]}…` |"
            for f in manifest.files
        ),
    ]
    if manifest.decoding.budget:
        lines += ["", "## Types under the budget", "", *_budget(manifest.decoding.budget)]
    if manifest.notes:
        lines += ["", "## Notes", "", *(f"- {markdown(note)}" for note in manifest.notes)]
    return "\n".join(lines) + "\n"


def _parity(parity: ParitySummary | None) -> list[str]:
    if parity is None:
        return ["Not checked yet: `vlmexport check` fills this in."]
    verdict, cores = _verdict(parity), parity.cores
    runtime = " and ".join(map(_runtime, cores)) or _runtime(parity)
    lines = [
        f"Verdict: {verdict}, on {parity.samples} held-out samples with {markdown(runtime)}.",
        "",
        f"| stage | measured{' on ' + markdown(cores[0].core) if cores else ''} |",
        "|---|---|",
    ]
    for stage, metrics in (cores[0] if cores else parity).stages.items():
        shown = [f"{name} {number(metrics[name])}" for name in _COLUMNS[stage] if name in metrics]
        lines.append(f"| {stage} | {markdown(', '.join(shown)) or 'not run'} |")
    return [
        *lines,
        "",
        *map(_core, cores),
        *_stock(parity.stock),
        *([f"- {markdown(of_views(parity.views))}"] if parity.views else ()),
        *(f"- {markdown(note)}" for note in parity.notes),
    ]


def _verdict(of: ParitySummary | CoreSummary | StockSummary) -> str:
    return "passed" if of.passed else f"**failed** at {of.broken_stage}"


def _runtime(run: ParitySummary | CoreSummary) -> str:
    """Its name, and that of the int8 kernels that it ran on."""
    return f"{run.runtime} (int8 by {run.kernels})" if run.kernels else run.runtime


def _core(core: CoreSummary) -> str:
    """What one core of the target computes, and how much of it is what the machine of the check computes."""
    equal = core.beside.get("answer", {}).get("equal")
    beside = "" if equal is None else f"; {equal:.0%} of its answers are token for token those of the check's machine"
    return f"- {markdown(_runtime(core))}: {_verdict(core)}{beside}"


def of_views(found: ViewsSummary) -> str:
    """What a budget of views costs before anything is quantized: the float model under it and without it."""
    logits, answer = (found.stages.get(stage, {}) for stage in ("logits", "answer"))
    without = "any number" if found.without is None else found.without
    budget = f"the budget of views (at most {found.most} of a picture, {without} without it)"
    if found.error:
        return f"what {budget} costs by itself could not be measured: {found.error}"
    shown = [f"kld {number(logits['kld'])}", f"agreement {number(logits['agreement'])}"]
    shown.append(f"equal answers {number(answer['equal'])}")
    for name in ("accuracy", "cider_d"):
        if name in answer:
            shown.append(f"{name} {number(answer[name])} ({number(answer[f'reference_{name}'])} without it)")
    return f"{budget} costs the float model by itself, on {found.samples} samples: {', '.join(shown)}"


def _stock(stock: StockSummary | None) -> list[str]:
    """What a program gets that does not repair its llama.cpp."""
    if stock is None:
        return []
    tokens, answer = (stock.stages.get(stage, {}) for stage in ("tokens", "answer"))
    measures = {"tokens cosine": tokens.get("cosine"), "equal answers": answer.get("equal")}
    shown = [f"{name} {number(value)}" for name, value in measures.items() if value is not None]
    return [f"- as stock llama.cpp computes it: {_verdict(stock)}, on {stock.samples} samples ({', '.join(shown)})"]


def _budget(budget: Budget) -> list[str]:
    """What each tensor got, with what the next smaller and the next larger type would have cost."""
    lines = [
        f"{budget.tensor_bytes:,} bytes of tensors; predicted KL divergence {number(budget.predicted_kld)} nats.",
        "",
        "| tensor | type | bytes | predicted loss | one type smaller | one type larger |",
        "|---|---|---:|---:|---|---|",
    ]
    for tensor, kind, size, loss, smaller, larger in budget_rows(budget):
        lines.append(f"| {markdown_code(tensor)} | {markdown(kind)} | {size:,} | {loss} | {smaller} | {larger} |")
    return lines


def budget_rows(budget: Budget) -> list[tuple[str, str, int, str, str, str]]:
    """Tensor, type, bytes, predicted loss, and the losses of one type smaller and one larger; the dearest first."""
    found = []
    for row in sorted(budget.tensors, key=lambda row: -row.tried[row.type][1]):
        tried = sorted(row.tried.items(), key=lambda item: item[1][0])
        place = [kind for kind, _ in tried].index(row.type)
        beside = [tried[place - 1] if place else None, tried[place + 1] if place + 1 < len(tried) else None]
        smaller, larger = (f"{one[0]}: {number(one[1][1])}" if one else "" for one in beside)
        loss = number(row.tried[row.type][1])
        found.append((row.tensor, row.type, row.bytes, loss, smaller, larger))
    return found
