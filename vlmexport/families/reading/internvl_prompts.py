"""The conversations of OpenGVLab's own layout, which its code makes by the name that a config gives.

A tokenizer of such a checkpoint has a chat template too: that of the language model, without images and with another
system sentence. The model was trained with the named conversation and its README asks by it, so it is the one here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmexport.checkpoint.spec import quoted
from vlmexport.errors import Unsupported
from vlmexport.families.reading.internvl import IMAGE_TEXT

_FIRST = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
_SECOND = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"


@dataclass(frozen=True)
class Conversation:
    """One of ChatML's kind: ``end`` stands behind each turn, and behind the system sentence."""

    system: str
    end: str

    def template(self, system: Any) -> str:
        """In Jinja. Images stand where a message has them, each with a line break behind; the system sentence where
        none is given.

        Args:
            system: another sentence, where it is a text.
        """
        sentence = system if isinstance(system, str) else self.system
        image = quoted(f"{IMAGE_TEXT.token}\n")
        begin, end = quoted(f"<|im_start|>system\n{sentence}{self.end}"), quoted(self.end)
        return (
            "{% if not messages or messages[0]['role'] != 'system' %}{{ " + begin + " }}{% endif %}"
            "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
            "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
            "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ " + image + " }}"
            "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
            "{{ " + end + " }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
        )


CONVERSATIONS = {
    "internvl2_5": Conversation(_SECOND, "<|im_end|>\n"),
    "Hermes-2": Conversation(_FIRST, "<|im_end|>"),
    "internlm2-chat": Conversation(_FIRST, "<|im_end|>"),
}
"""InternVL2.5's to 3.5's; InternVL2's with Qwen2, and with InternLM2."""


def find(name: Any, path: Path) -> Conversation:
    """The conversation of a name.

    Raises:
        Unsupported: another one.
    """
    if name not in CONVERSATIONS:
        raise Unsupported(f"{path}: the template {name!r} is not known", f"known: {', '.join(CONVERSATIONS)}")
    return CONVERSATIONS[name]
