"""What a checkpoint is, told without its weights: one Spec from every layout."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isqrt
from typing import Any, Literal, Self

from vlmexport.checkpoint.image_text import ImageText
from vlmexport.checkpoint.rope import RopeScaling

Colour = tuple[float, float, float]
"""Red, green, blue."""

CLIP_MEAN: Colour = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Colour = (0.26862954, 0.26130258, 0.27577711)
HALF: Colour = (0.5, 0.5, 0.5)
"""SigLIP's, both."""


@dataclass(frozen=True)
class Size:
    """A size in pixels, in the keys that transformers' image processors know; None for those that do not count."""

    height: int | None = None
    width: int | None = None
    shortest_edge: int | None = None
    longest_edge: int | None = None


@dataclass(frozen=True)
class ImageProcessorSpec:
    """How a picture becomes pixels, in the names of transformers' image processors.

    ``mode`` names the file in ``processing`` that cuts the picture into views. A ``square`` one gives a single view:
    with ``do_pad`` the picture is padded to a square of its own mean colour first, then resized to ``size``, and with
    ``do_center_crop`` its middle is cut out; with neither it is resized to a square, which distorts it. One of
    ``tiles`` resizes the picture to ``size.longest_edge`` and cuts it into squares of ``max_image_size.longest_edge``,
    unless ``do_image_splitting`` is off; with ``do_resize`` off it cuts the picture as large as it is. One of
    ``canvas`` stretches the picture over ``min_patches`` to ``max_patches`` squares of ``size``, unless
    ``do_image_splitting`` is off. One of a ``grid`` makes it at most ``size.longest_edge``, or just so large with
    ``do_enlarge``, cuts it into squares of ``max_image_size.longest_edge`` and puts the whole before them with
    ``add_whole``. ``resample`` is Pillow's number of a filter.
    """

    mode: Literal["square", "tiles", "canvas", "grid", "anyres", "native"]
    size: Size
    do_center_crop: bool
    do_pad: bool
    resample: int = 3
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: Colour = CLIP_MEAN
    image_std: Colour = CLIP_STD
    max_image_size: Size | None = None
    do_image_splitting: bool = False
    do_resize: bool = True
    min_patches: int = 1
    max_patches: int = 1
    do_enlarge: bool = True
    add_whole: bool = True

    @classmethod
    def canvas(cls, side: int, least: int = 1, most: int = 12, splits: bool = True, **others: Any) -> Self:
        """Views of ``side`` squared, of a picture that is stretched over ``least`` to ``most`` of them.

        Args:
            splits: whether it is cut into tiles, else it is one view.
            others: fields that are not as GOT-OCR 2 has them.
        """
        return cls(
            "canvas", Size(height=side, width=side), do_center_crop=False, do_pad=False, do_image_splitting=splits,
            min_patches=least, max_patches=most, **others,
        )  # fmt: skip

    @classmethod
    def tiles(cls, longest: int, side: int, splits: bool = True, **others: Any) -> ImageProcessorSpec:
        """Views of ``side`` squared, of a picture whose longest edge is made ``longest`` pixels.

        Args:
            splits: whether it is cut into tiles, else it is one view.
            others: fields that are not as Idefics3 has them.
        """
        known: dict[str, Any] = {"resample": 1, "image_mean": HALF, "image_std": HALF} | others
        return cls(
            "tiles", Size(longest_edge=longest), do_center_crop=False, do_pad=False,
            max_image_size=Size(longest_edge=side), do_image_splitting=splits, **known,
        )  # fmt: skip

    @classmethod
    def square(cls, side: int, pads: bool, **others: Any) -> ImageProcessorSpec:
        """One view of ``side`` squared, of the whole picture on a square or of its middle.

        Args:
            others: fields that are not as CLIP has them.
        """
        size = Size(height=side, width=side) if pads else Size(shortest_edge=side)
        return cls("square", size, do_center_crop=not pads, do_pad=pads, **others)

    def with_padding(self, pads: bool) -> ImageProcessorSpec:
        """The same, of the whole picture on a square or of its middle."""
        square = ImageProcessorSpec.square(self.side, pads)
        return replace(self, size=square.size, do_center_crop=square.do_center_crop, do_pad=pads)

    @property
    def side(self) -> int:
        """Pixels along one side of a view that is a square."""
        view = self.max_image_size or self.size
        found = view.shortest_edge or view.longest_edge or view.height
        assert found is not None
        return found

    @property
    def mean(self) -> Colour:
        """What is taken off a rescaled pixel."""
        return self.image_mean if self.do_normalize else (0.0, 0.0, 0.0)

    @property
    def std(self) -> Colour:
        """What a pixel is divided by after that."""
        return self.image_std if self.do_normalize else (1.0, 1.0, 1.0)

    @property
    def background(self) -> tuple[int, int, int]:
        """The colour that pads, 8 bits a channel: the mean, whether pixels are normalised or not."""
        red, green, blue = (int(255 * mean) for mean in self.image_mean)
        return red, green, blue


@dataclass(frozen=True)
class VisionSpec:
    """A vision encoder. ``kind`` names the module in ``model/vision``.

    ``variant`` says which model of that kind it is where sizes do not tell (timm's name, or the encoder that ``s2``
    wraps). ``patch_size`` is the number of pixels along one side of what becomes one feature: of a convolutional
    encoder, the stride of its last map. One whose layers are no stack of like layers says 0 layers, and layer 0.
    ``section`` is what else the config says in the terms of its class: the float model is built from it too.
    """

    kind: str
    image_size: int
    patch_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    select_layer: int = -2
    select_feature: str = "patch"
    variant: str = ""
    section: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Length of the features stage: patches, plus one where the class token is kept."""
        return self.grid**2 + (self.select_feature == "cls_patch")

    @property
    def used_layers(self) -> int:
        """Transformer layers that ``select_layer`` leaves in use (hidden_states counts the embeddings as 0)."""
        return self.select_layer if self.select_layer >= 0 else self.num_layers + 1 + self.select_layer


@dataclass(frozen=True)
class ProjectorSpec:
    """A projector. ``kind`` is the checkpoint's ``mm_projector_type``."""

    kind: str
    in_features: int
    out_features: int
    in_tokens: int

    @property
    def grid(self) -> int:
        """Side of the square of input tokens."""
        return isqrt(self.in_tokens)


@dataclass(frozen=True)
class LanguageSpec:
    """A language model. ``kind`` names the module in ``model/language``.

    ``rms_norm_eps`` is the epsilon of its norms, RMSNorm or not. ``rope_theta`` is 0 where positions are learned:
    ``max_positions`` are then the rows of their table. ``classes`` are the answers of one that chooses among them, as
    text; one that generates its answers has none. ``section`` is what else the config says in the terms of its
    class: the float model is built from it too.
    """

    kind: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_positions: int
    tie_word_embeddings: bool
    hidden_act: str = "silu"
    rope_scaling: RopeScaling | None = None
    classes: tuple[str, ...] = ()
    section: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def generates(self) -> bool:
        """Whether an answer is text, token by token; else it is one class, after one pass."""
        return not self.classes


@dataclass(frozen=True)
class PromptSpec:
    """MobileVLM's and LLaVA-1.5's conversation template (``v1``).

    ``image_start`` and ``image_end`` stand around the image where the model was trained so (``mm_use_im_start_end``).
    """

    system: str = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    user: str = "USER"
    assistant: str = "ASSISTANT"
    image_start: str = ""
    image_end: str = ""

    def text(self, question: str) -> str:
        """The prompt of one question about one image, with ``<image>`` where its tokens go."""
        image = f"{self.image_start}<image>{self.image_end}"
        return f"{self.system} {self.user}: {image}\n{question} {self.assistant}:"

    def chat_template(self) -> str:
        """In Jinja. Images of a message come first; turns end as MobileVLM ends them."""
        image = f"{self.image_start}<image>{self.image_end}\n"
        text = (
            "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + image + "{% endif %}{% endfor %}"
            "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
            "{% endfor %}"
        )
        content = "{% if message['content'] is string %}{{ message['content'] }}{% else %}" + text + "{% endif %}"
        return (
            "{% if messages[0]['role'] != 'system' %}{{ " + quoted(f"{self.system} ") + " }}{% endif %}"
            "{% for message in messages %}"
            "{% if message['role'] == 'user' %}{{ " + quoted(f"{self.user}: ") + " }}" + content + "{{ ' ' }}"
            "{% elif message['role'] == 'assistant' %}{{ "
            + quoted(f"{self.assistant}: ")
            + " }}"
            + content
            + "{{ eos_token }}"
            "{% else %}" + content + "{{ ' ' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ " + quoted(f"{self.assistant}:") + " }}{% endif %}"
        )


def quoted(text: str) -> str:
    """A Jinja string, whatever is in the text."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


@dataclass(frozen=True)
class Spec:
    """Everything later rooms need to know about a checkpoint apart from its weights.

    ``prompt`` is the conversation of models that have no template of their own. ``bos_token_id`` is None where no text
    begins with such a token. ``eos_token_id`` is the first of
    ``stop_token_ids``, each of which ends an answer. ``image_token_id`` is the id that the config gives ``<image>``;
    None where it gives none. ``chat_template`` is the checkpoint's own, in Jinja; empty where it has none.
    ``max_images`` is how many images the model was trained to see in one prompt; None where there is no limit.
    ``image_text`` is what stands for an image in the text of a prompt; None where nothing does but its visual tokens.
    ``extra_tokens`` are special tokens that the model's own code adds behind those of its tokenizer, in their order;
    ``image_token`` is what the tokenizer or this code calls ``<image>``.
    """

    name: str
    layout: str
    image_processor: ImageProcessorSpec
    vision: VisionSpec
    projector: ProjectorSpec
    language: LanguageSpec
    prompt: PromptSpec
    bos_token_id: int | None
    eos_token_id: int
    pad_token_id: int | None
    torch_dtype: str
    image_token_id: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    chat_template: str = ""
    max_images: int | None = 1
    image_text: ImageText | None = None
    extra_tokens: tuple[str, ...] = ()
    image_token: str = "<image>"

    def __post_init__(self) -> None:
        """Where nothing more is said, as in manifests of earlier versions, one token ends an answer."""
        if not self.stop_token_ids:
            object.__setattr__(self, "stop_token_ids", (self.eos_token_id,))

    @property
    def template(self) -> str:
        """The chat template that its prompts are made with."""
        return self.chat_template or self.prompt.chat_template()
