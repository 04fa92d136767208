"""A budget instead of a type: kept to, spent, told in the manifest; types given by hand stay; too small is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest

from tests.checkpoints import tiny_spec, write_checkpoint
from vlmexport.artifact.bundle.halves import DECODER, VISION
from vlmexport.artifact.bundle.manifest import read_manifest
from vlmexport.errors import UsageError
from vlmexport.pipeline import export
from vlmexport.quantize.allocation import NARROW, WIDE
from vlmexport.recipe import resolve


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 256 and of 288: both sets of candidates."""
    spec = tiny_spec("mlp2x_gelu", hidden_size=256, num_heads=4, num_kv_heads=4, head_dim=64, intermediate_size=288)
    return write_checkpoint(tmp_path_factory.mktemp("budget") / "tiny", spec)


def make(model: Path, output: Path, **flags: Any) -> tuple[dict[str, str], int, dict[str, Any]]:
    """Types of the language model, bytes of the files that run, and what the manifest says of the budget."""
    keys = {f"gguf.{key}": value for key, value in flags.items()}
    export(str(model), resolve("gguf-q4_k_m", {**keys, "calibration.samples": 4}), output)
    manifest = read_manifest(output)
    reader = gguf.GGUFReader(output / manifest.decoding.file("language"))
    types = {tensor.name: tensor.tensor_type.name.lower() for tensor in reader.tensors}
    size = manifest.size(VISION + DECODER)
    assert manifest.decoding.budget is not None
    return types, size, manifest.decoding.budget.model_dump(mode="json")


@pytest.mark.slow
def test_kept_to_and_spent(model: Path, tmp_path: Path) -> None:
    sizes, losses = [], []
    types, largest, _ = make(model, tmp_path / "all", bpw=16.5)
    assert {types["output.weight"], types["blk.0.ffn_down.weight"]} == {"f16"}
    for share in (0.75, 0.85, 0.95):
        limit = int(largest * share)
        types, size, budget = make(model, tmp_path / str(share), max_size=f"{limit}B")
        assert limit * 0.97 < size <= limit
        assert {line["tensor"]: line["type"] for line in budget["tensors"]}.items() <= types.items()
        assert types["blk.0.attn_q.weight"] in WIDE
        assert types["blk.0.ffn_down.weight"] in NARROW
        assert types["output_norm.weight"] == "f32"
        sizes.append(size)
        losses.append(budget["predicted_kld"])
    assert sizes == sorted(sizes)
    assert losses == sorted(losses, reverse=True)


@pytest.mark.slow
def test_the_card_shows_the_table(model: Path, tmp_path: Path) -> None:
    types, _, budget = make(model, tmp_path / "out", bpw=5.0)
    text = (tmp_path / "out" / "README.md").read_text()
    rows = [
        [cell.strip("` ") for cell in line.strip("|").split("|")] for line in text.splitlines() if "weight`" in line
    ]
    table = {line["tensor"]: line for line in budget["tensors"]}
    assert {row[0]: (row[1], row[2]) for row in rows} == {
        name: (types[name], f"{line['bytes']:,}") for name, line in table.items()
    }
    losses = [float(row[3]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert sum(losses) == pytest.approx(budget["predicted_kld"], rel=1e-3)
    for name, kind, _, _, smaller, larger in rows:
        ladder = sorted(table[name]["tried"], key=lambda other: table[name]["tried"][other][0])
        place = ladder.index(kind)
        assert smaller.partition(":")[0] == (ladder[place - 1] if place else "")
        assert larger.partition(":")[0] == (ladder[place + 1] if place + 1 < len(ladder) else "")


@pytest.mark.slow
def test_types_given_by_hand_stay(model: Path, tmp_path: Path) -> None:
    types, _, budget = make(model, tmp_path / "out", bpw=5.0, tensor_types=("output.weight=q8_0",))
    assert types["output.weight"] == "q8_0"
    assert set(next(line for line in budget["tensors"] if line["tensor"] == "output.weight")["tried"]) == {"q8_0"}


@pytest.mark.slow
def test_the_same_bytes_again(model: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make(model, tmp_path / name, bpw=4.5)
    for file in (tmp_path / "one").glob("*.gguf"):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


@pytest.mark.parametrize("flags", [{"max_size": "20kB"}, {"bpw": 1.5}])
def test_too_small(model: Path, tmp_path: Path, flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="larger than the budget"):
        make(model, tmp_path / "out", **flags)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [{"max_size": "8 elephants"}, {"max_size": "9MB", "bpw": 4.0}, {"bpw": -1.0}])
def test_no_budget(model: Path, tmp_path: Path, flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        make(model, tmp_path / "out", **flags)
