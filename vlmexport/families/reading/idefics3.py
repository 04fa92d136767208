"""What the layouts of Idefics3 and SmolVLM share."""

from __future__ import annotations

from vlmexport.checkpoint.image_text import ImageText

IMAGE_TEXT = ImageText(
    tile="<fake_token_around_image><row_{row}_col_{column}>",
    row_end="\n",
    whole="\n<fake_token_around_image><global-img>",
    alone="<fake_token_around_image><global-img>",
    end="<fake_token_around_image>",
)
"""As both processors write it. Where a tokenizer has no such token, as the first SmolVLM's, a mark is plain text."""
