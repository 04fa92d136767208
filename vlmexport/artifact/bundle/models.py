"""What every part of a manifest is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A part of ``vlmexport.json``. A key that it does not have is an error; a number that is none is kept as text."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")
