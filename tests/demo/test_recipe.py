"""The training program: packing, names as pieces, layout of the exported checkpoint, a tiny run of everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vlmexport.demo import model_path
from vlmexport.demo.questions import ask
from vlmexport.demo.scenes import BACKGROUNDS, VALIDATION_SEEDS, make_scene
from vlmexport.demo.sprites import sprite_names

torch = pytest.importorskip("torch")
sentencepiece = pytest.importorskip("sentencepiece")
transformers = pytest.importorskip("transformers")

RECIPE = Path(__file__).parents[2] / "recipes" / "demo"


@pytest.fixture(autouse=True)
def _recipe_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPE))


def llama(vocabulary: int) -> torch.nn.Module:
    """transformers' model with the sizes of the shipped config."""
    config = json.loads((model_path() / "config.json").read_text(encoding="utf-8"))
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps")
    sizes = {key: config[key] for key in keys}
    made = transformers.LlamaConfig(vocab_size=vocabulary, attn_implementation="eager", **sizes)
    return transformers.LlamaForCausalLM(made).eval()


def test_outlier_channels_change_no_answer() -> None:
    from language import WIDTH, Language
    from outliers import RATIOS, with_outliers
    from packing import VISUAL, answer_logits, pack
    from prompts import Prompts

    prompts = Prompts(model_path() / "tokenizer.model")
    torch.manual_seed(0)
    plain, spiked = (Language(prompts.pieces.get_piece_size()).eval() for _ in range(2))
    spiked.load_state_dict(with_outliers(plain.state_dict()))
    for norm, ratios in RATIOS.items():
        gain = spiked.state_dict()[f"layers.1.{norm}.weight"]
        assert sorted(gain.tolist(), reverse=True)[: len(ratios)] == pytest.approx(ratios)
    packed = pack([ask(make_scene(VALIDATION_SEEDS[0]))], prompts)
    visual = torch.randn(1, VISUAL, WIDTH)
    with torch.no_grad():
        expected, found = (answer_logits(model, visual, packed) for model in (plain, spiked))
    assert (expected - found).abs().max() < 1e-4


def test_a_packed_turn_equals_a_single_turn() -> None:
    from language import WIDTH, Language
    from packing import VISUAL, answer_logits, pack
    from prompts import Prompts

    prompts = Prompts(model_path() / "tokenizer.model")
    torch.manual_seed(0)
    language = Language(prompts.pieces.get_piece_size()).eval()
    plain = llama(prompts.pieces.get_piece_size())
    plain.load_state_dict({k if k.startswith("lm_head") else f"model.{k}": v for k, v in language.state_dict().items()})
    asked = [ask(make_scene(seed)) for seed in VALIDATION_SEEDS[:2]]
    packed = pack(asked, prompts)
    visual = torch.randn(2, VISUAL, WIDTH)
    embed, at = plain.get_input_embeddings(), 0
    with torch.no_grad():
        logits = answer_logits(language, visual, packed)
        for picture, questions in enumerate(asked):
            for question in questions:
                ids, prompt = prompts.turn(question)
                parts = [embed(packed.before), visual[picture], embed(torch.tensor(ids[:-1]))]
                single = plain(inputs_embeds=torch.cat(parts)[None]).logits[
                    0, len(packed.before) + VISUAL + prompt - 1 :
                ]
                torch.testing.assert_close(logits[at : at + len(single)], single, atol=1e-4, rtol=1e-4)
                assert packed.targets[at : at + len(single)].tolist() == ids[prompt:]
                at += len(single)
    assert at == len(logits)


def test_names_are_one_piece_and_prompts_as_published() -> None:
    from prompts import Prompts

    prompts = Prompts(model_path() / "tokenizer.model")
    for name in (*sprite_names(), *BACKGROUNDS, "yes", "no"):
        prompts.name_id(name)
    before = prompts.before()
    assert before[0] == 1
    assert prompts.pieces.decode(before[1:]).endswith("user's questions. USER: ")
    line_break = prompts.pieces.piece_to_id("<0x0A>")
    assert prompts.after("What is this?")[1] == line_break
    for question in ask(make_scene(VALIDATION_SEEDS[0])):
        ids, length = prompts.turn(question)
        assert ids[:length] == prompts.after(question.text)
        assert ids[-1] == 2


def test_the_recipes_tower_is_clip() -> None:
    from evaluate import Exported
    from export import TOWER_PREFIX
    from safetensors.torch import load_file

    config = json.loads((model_path() / "config.json").read_text(encoding="utf-8"))
    clip = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**config["vision_config"])).eval()
    inner = "vision_model." if any(name.startswith("vision_model.") for name in clip.state_dict()) else ""
    tensors = load_file(model_path() / "model.safetensors")
    published = {
        inner + n.removeprefix(TOWER_PREFIX): t.float() for n, t in tensors.items() if n.startswith(TOWER_PREFIX)
    }
    clip.load_state_dict({n: t for n, t in clip.state_dict().items() if n.endswith("position_ids")} | published)
    pixels = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = clip(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        torch.testing.assert_close(Exported(model_path()).tower.whole(pixels), features, atol=1e-3, rtol=1e-3)


def test_checkpoint_is_small_and_half_precision() -> None:
    from safetensors.torch import load_file

    weights = model_path() / "model.safetensors"
    assert weights.stat().st_size <= 20_000_000
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float16}


@pytest.mark.slow
def test_smoke_run_of_every_stage(tmp_path: Path) -> None:
    command = [sys.executable, str(RECIPE / "train.py"), "--smoke", "--threads", "1", "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = {path.name for path in (tmp_path / "model").iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.model",
        "README.md",
        "preprocessor_config.json",
    } <= written
