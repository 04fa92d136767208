"""Published layouts, one file each: which config is of it, where its tensors belong, what its config says.

The folder is read, no table is kept: a new family whose tower, projector and language model exist is one file here.
Nothing else in the package looks at ``model_type``, at an architecture's name or at a prefix. What several families
share is in ``reading/``.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol, cast

from vlmexport.checkpoint.documents import architectures
from vlmexport.checkpoint.spec import Spec
from vlmexport.checkpoint.tensors import LazyTensor
from vlmexport.errors import Unsupported
from vlmexport.families.reading.bundles import Clients, Mmproj
from vlmexport.families.reading.published import Published

Sorted = dict[str, dict[str, LazyTensor]]
"""Component → canonical name → tensor."""


class Family(Protocol):
    """A file of this folder.

    It may also say what its bundles carry, where the defaults of ``reading/bundles.py`` do not do:
    ``clients(spec) -> Clients`` and ``gguf(spec) -> Mmproj``. Either raises ``Unsupported`` where there is no such
    bundle, and says why. ``arranged(tensors) -> Sorted`` is there where tensors hold others' values than canonical
    ones do, ``tokenizer(config) -> str | None`` where a config names a tokenizer that lies elsewhere.
    """

    ARCHITECTURES: tuple[str, ...]
    """The classes that its configs name; no other file has them."""

    MODEL_TYPES: tuple[str, ...]
    """The model types of its configs, which count where no file knows the architecture; none where they name none."""

    SECTIONS: tuple[str, ...]
    """What lies inside its configs. Two families that share a model type differ by them."""

    def place(self, name: str) -> tuple[str, str] | None:
        """Published name of a tensor → its component and canonical name; every spelling that was published. None for
        one that the model does not use.

        Raises:
            CheckpointError: it belongs to no component.
        """

    def tower(self, config: dict[str, Any]) -> str | None:
        """The folder or Hub id of the vision tower that a config names, for a checkpoint that does not carry its."""

    def spec(self, published: Published) -> Spec:
        """What the documents of a folder say.

        Raises:
            CheckpointError: something is missing or garbled, or documents and tensors differ.
            Unsupported: something that would change the result and is not known.
        """


def names() -> list[str]:
    """The families' files."""
    return sorted(info.name for info in iter_modules(__path__) if not info.ispkg)


def family(name: str) -> Family:
    """The family of a file."""
    return cast(Family, import_module(f"{__name__}.{name}"))


def clients(one: Family, spec: Spec) -> Clients:
    """What its bundles of graphs carry for their clients.

    Raises:
        Unsupported: no client runs it.
    """
    found: Clients = getattr(one, "clients", lambda spec: Clients())(spec)
    return found


def gguf(one: Family, spec: Spec) -> Mmproj:
    """What an mmproj of it says beside its tower and its projector.

    Raises:
        Unsupported: libmtmd cannot hold it, or would compute it wrongly.
    """
    found: Mmproj = getattr(one, "gguf", lambda spec: Mmproj())(spec)
    return found


def arranged(one: Family, tensors: Sorted) -> Sorted:
    """A checkpoint's tensors with canonical names, shapes and values.

    Raises:
        CheckpointError: one has a shape that cannot be.
    """
    found: Sorted = getattr(one, "arranged", lambda tensors: tensors)(tensors)
    return found


def tokenizer(one: Family, config: dict[str, Any]) -> str | None:
    """The folder or Hub id of the tokenizer that a config names, for a checkpoint that does not carry its."""
    found: str | None = getattr(one, "tokenizer", lambda config: None)(config)
    return found


def find(config: dict[str, Any], path: Path) -> Family:
    """The family of a config: by its architecture, else by its model type.

    Args:
        path: the config's file, for messages.

    Raises:
        Unsupported: of none that is known.
    """
    families = [family(name) for name in names()]
    for architecture in architectures(config):
        for one in families:
            if architecture in one.ARCHITECTURES:
                return one
    same = [one for one in families if config.get("model_type") in (one.MODEL_TYPES or (None,))]
    same = [one for one in same if set(one.SECTIONS) <= set(config)]
    if same:
        return max(same, key=lambda one: len(one.SECTIONS))
    known = {name for one in families for name in (*one.ARCHITECTURES, *one.MODEL_TYPES)}
    raise Unsupported(
        f"{path}: model type {config.get('model_type', 'missing')!r} is not a known vision-language model",
        f"known: {', '.join(sorted(known))}",
    )
