"""TOML + environment + flags → one frozen Recipe. What a target wants is decided here and nowhere else.

Precedence: flag > ``VLMEXPORT_*`` > recipe file > defaults. Unknown keys are errors that name the nearest known one.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from vlmexport.errors import UsageError
from vlmexport.units import parse_size

COMPONENTS = ("vision", "projector", "language")
_NO_IMPORTANCE = ("f32", "f16", "bf16", "q8_0")
# Environment variables are text: lists stand between blanks there, and pydantic makes numbers of text but no literals.
_WORDS = BeforeValidator(lambda value: value.split() if isinstance(value, str) else value)
_NUMBER = BeforeValidator(lambda value: int(value) if isinstance(value, str) and value.isdecimal() else value)


def budget_label(max_size: str | None, bpw: float | None) -> str | None:
    if max_size is not None:
        return max_size.replace(" ", "")
    return None if bpw is None else f"{bpw:g}bpw"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Calibration(_Frozen):
    """The samples that statistics are taken from."""

    samples: int = Field(72, ge=1, description="Samples of the calibration set to use, in its order.")
    image_weight: float = Field(
        0.3, ge=0, description="What an image position counts against one of text in the importance of columns."
    )


class Onnx(_Frozen):
    """The ONNX bundle."""

    vision: Literal["int8", "fp32"] = Field("int8", description="Precision of vision encoder and projector.")
    decoder: Literal["int8", "int4", "fp16", "fp32"] = Field(
        "int8", description="Precision of the decoder; int4 and fp16 need ONNX Runtime's fused operators."
    )
    block: Annotated[Literal[16, 32, 64, 128], _NUMBER] = Field(
        32, description="Values of an int4 weight that share a scale."
    )
    rounding: Literal["nearest", "search", "gptq"] = Field(
        "nearest",
        description="int4 weights: to the nearest level; with scales searched by importance; by GPTQ. The last two run "
        "the float decoder over the calibration set.",
    )
    head_bits: Annotated[Literal[4, 8], _NUMBER] = Field(8, description="Bits of the output layer of an int4 decoder.")
    scheme: Literal["fbgemm", "qnnpack", "qnnpack-per-tensor"] = Field(
        "fbgemm", description="Static int8 scheme: fbgemm U8xS8 per channel, qnnpack S8xS8 per channel."
    )
    observer: Literal["minmax", "percentile", "histogram", "mse", "cosine"] = Field(
        "mse",
        description="How activation ranges come from statistics: extremes, 99.99 % of the values, the search of "
        "torch's HistogramObserver, or the least squared error or highest cosine.",
    )
    smooth: bool = Field(True, description="Fold outlier columns into the norm or layer before (SmoothQuant).")
    fuse: bool = Field(
        True,
        description="In the tower, attention is one operator of ONNX Runtime.",
    )
    bias_correction: bool = Field(
        False, description="Take the shift that int8 weights give to a layer's mean output out of its bias."
    )
    saturation: Literal["avx2", "none"] = Field(
        "avx2",
        description="avx2: larger steps for weights whose products would saturate on x86 processors without VNNI; "
        "none: for processors with VNNI alone.",
    )
    twice_below_db: float = Field(
        32.0, description="Layers whose predicted signal to noise ratio is lower read their input as two int8 terms."
    )
    float_below_db: float = Field(16.0, description="Layers for which even two terms predict less stay in float.")
    fallback: Literal["measured", "predicted"] = Field(
        "measured",
        description="measured: where 24 calibration samples fail the gates, as many layers stay in float as it takes.",
    )
    float_layers: Annotated[tuple[str, ...], _WORDS] = Field(
        (), description="Patterns (fnmatch) of layers that stay in float, as in the float model's module paths."
    )

    @property
    def fused_decoder(self) -> bool:
        """Whether the decoder is built from ONNX Runtime's fused operators, which know positions from the mask."""
        return self.decoder in ("int4", "fp16")


class Gguf(_Frozen):
    """The GGUF bundle."""

    type: str = Field("q4_k_m", description="Type of the language model; a budget takes its place.")
    max_size: str | None = Field(None, description="Budget: size of the GGUF files that run, such as 850MB.")
    bpw: float | None = Field(None, gt=0, description="Budget: bits per weight of the language model.")
    tensor_types: Annotated[tuple[str, ...], _WORDS] = Field(
        (), description="REGEX=TYPE: the type of its tensors whose names match; the first that matches wins."
    )
    vision: Literal["mmproj", "onnx"] = Field(
        "mmproj",
        description="mmproj, or onnx: a hybrid, its vision encoder as the onnx section says.",
    )
    mmproj_type: Literal["f16", "q8_0", "f32"] = Field("f16", description="Type of the mmproj.")
    imatrix: str = Field("auto", description="auto (from the calibration set), none, or an imatrix file.")

    @model_validator(mode="after")
    def _one_budget(self) -> Gguf:
        if self.max_size is not None:
            parse_size(self.max_size)
            if self.bpw is not None:
                raise ValueError("max_size and bpw are both set: set one of them")
        return self

    @property
    def budget(self) -> str | None:
        """The budget as names of files show it; None where a type decides."""
        return budget_label(self.max_size, self.bpw)

    @property
    def max_bytes(self) -> int | None:
        """``max_size`` in bytes."""
        return None if self.max_size is None else parse_size(self.max_size)

    @property
    def uses_importance(self) -> bool:
        """Whether an importance matrix is asked for, and changes the bytes of a type that is named."""
        types = [self.type, *(text.rpartition("=")[2].strip() for text in self.tensor_types)]
        of_use = self.budget is not None or any(name.lower() not in _NO_IMPORTANCE for name in types)
        return self.imatrix != "none" and of_use


class Gates(_Frozen):
    """What a bundle must reach on held-out data; a gate that is not set is not judged."""

    pixels_max_abs: float | None = Field(None, description="Largest difference of a normalised pixel.")
    features_cosine: float | None = Field(None, description="Mean cosine per patch, at least.")
    features_local_nmse: float | None = Field(
        None, description="Normalised mean squared error of features, fed by the float model's pixels, at most."
    )
    tokens_cosine: float | None = Field(None, description="Mean cosine per visual token, at least.")
    tokens_cosine_p1: float | None = Field(None, description="1st percentile of that cosine, at least.")
    tokens_nmse: float | None = Field(None, description="Normalised mean squared error, at most.")
    tokens_sqnr_db: float | None = Field(None, description="Signal to quantization noise in dB, at least.")
    logits_local_nmse: float | None = Field(
        None, description="Normalised mean squared error of logits, fed by the float model's tokens, at most."
    )
    logits_max_abs: float | None = Field(None, description="Largest difference of a logit, at most.")
    logits_kld: float | None = Field(None, description="Mean KL divergence in nats, at most.")
    logits_agreement: float | None = Field(
        None, description="Share of decisions that stay, each weighed by the float model's preference, at least."
    )
    logits_top1: float | None = Field(None, description="Share of equal best tokens, at least.")
    answer_agreement: float | None = Field(
        None, description="The same share over the decisions of the answers, at least."
    )
    answer_equal: float | None = Field(None, description="Share of answers equal token by token, at least.")
    answer_task_drop: float | None = Field(None, description="Loss of accuracy against the float model, at most.")

    def behind_rounding(self) -> Gates:
        """Of a model that rounds inside (a projector in static int8): a difference of 1e-7 before it is a whole step
        behind it, now and then. So the largest difference of a logit says nothing, their divergence has to.

        Measured in float32 on two random designs: 3e-7 and 4e-7 of the tokens' energy, a logit off by 0.04 and a
        divergence of 3e-10 and 2e-8.
        """
        if self.logits_max_abs is None:
            return self
        nmse = None if self.tokens_nmse is None else max(self.tokens_nmse, 1e-5)
        kld = 1e-6 if self.logits_kld is None else self.logits_kld
        return self.model_copy(update={"tokens_nmse": nmse, "logits_max_abs": None, "logits_kld": kld})


class Recipe(_Frozen):
    """One resolved recipe; it is saved in the bundle."""

    name: str = "custom"
    format: Literal["onnx", "gguf"] = "onnx"
    target: Literal["x86", "arm64", "web", "any"] = "any"
    max_views: int | None = Field(
        None, ge=1, description="Views of a picture, at most: the tiles that it is cut into, and the whole."
    )
    calibration: Calibration = Calibration()
    onnx: Onnx = Onnx()
    gguf: Gguf = Gguf()
    gates: Gates = Gates()

    @property
    def statistics_components(self) -> tuple[str, ...]:
        """Components whose statistics quantize a tensor of this recipe; the decoder's come with the others'."""
        if self.format == "onnx":
            if self.onnx.decoder == "int8" or (self.onnx.decoder, self.onnx.rounding) == ("int4", "search"):
                return COMPONENTS
            return COMPONENTS[:2] if self.onnx.vision == "int8" else ()
        quantizes = self.gguf.imatrix == "auto" and self.gguf.uses_importance
        if not quantizes and self.gguf.vision == "onnx" and self.onnx.vision == "int8":
            return COMPONENTS[:2]
        return COMPONENTS if quantizes else ()

    @property
    def int8_components(self) -> tuple[str, ...]:
        """Components with int8 products in ONNX graphs."""
        vision = self.onnx.vision == "int8" and (self.format == "onnx" or self.gguf.vision == "onnx")
        decoder = self.format == "onnx" and self.onnx.decoder == "int8"
        return (*(COMPONENTS[:2] if vision else ()), *(COMPONENTS[2:] if decoder else ()))

    @property
    def uses_gptq(self) -> bool:
        """Whether the float decoder is run within the export, for GPTQ."""
        return self.format == "onnx" and (self.onnx.decoder, self.onnx.rounding) == ("int4", "gptq")

    @property
    def needs_statistics(self) -> bool:
        """Whether any tensor of this recipe is quantized by what calibration saw."""
        return bool(self.statistics_components)


def recipes_folder() -> Path:
    """Where the recipes that ship with the package lie: in a checkout, or in the installed package."""
    for folder in (Path(__file__).parent / "_data" / "recipes", Path(__file__).parent.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise UsageError("the recipes that ship with vlmexport are missing", "install it again")


def shipped() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(path.stem for path in recipes_folder().glob("*.toml"))


def resolve(name: str, flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Recipe:
    """The recipe of a name (shipped) or a path (TOML), with environment and flags applied.

    Args:
        name: a shipped recipe's name, or a path that ends in ``.toml``.
        flags: dotted keys, e.g. ``{"gguf.type": "q8_0"}``; values that are None are left out.
        environ: ``VLMEXPORT_GGUF_TYPE=q8_0`` sets ``gguf.type``; defaults to the process's.

    Raises:
        UsageError: no such recipe, an unknown key, or a value that does not fit.
    """
    path = Path(name) if name.endswith(".toml") else recipes_folder() / f"{name}.toml"
    if not path.is_file():
        raise UsageError(f"there is no recipe {name!r}", f"known: {', '.join(shipped())}; or pass a .toml file")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML ({error})", "correct that line") from error
    data.setdefault("name", path.stem)
    for key, value in _from_environment(os.environ if environ is None else environ).items():
        _set(data, key, value)
    for key, value in (flags or {}).items():
        if value is not None:
            _set(data, key, value)
    return parse(data, str(path))


def parse(data: Mapping[str, Any], where: str) -> Recipe:
    """A Recipe from plain data.

    Raises:
        UsageError: names the key, and the nearest known one.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            near = get_close_matches(key, keys(), n=1, cutoff=0.4)
            cure = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(keys())}"
            raise UsageError(f"{where}: unknown recipe key {key!r}", cure) from error
        raise UsageError(
            f"{where}: {key}: {first['msg'].removeprefix('Value error, ')}", "see `vlmexport recipes`"
        ) from error


def keys(model: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Every dotted key of a recipe."""
    found = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += keys(kind, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def variable(key: str) -> str:
    """The environment variable that sets a key."""
    return "VLMEXPORT_" + key.replace(".", "_").upper()


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    names = {variable(key): key for key in keys()}
    return {names[name]: value for name, value in environ.items() if name in names}


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
    data[last] = value
