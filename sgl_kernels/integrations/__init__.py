"""Other libraries served by the registry: one word to install it, one word to take it out."""

from __future__ import annotations

import importlib
import threading
from types import TracebackType
from typing import Any

LIBRARIES: dict[str, str] = {
    "torch": "sgl_kernels.integrations.torch_hook",
    "diffusers": "sgl_kernels.integrations.diffusers",
    "transformers": "sgl_kernels.integrations.transformers",
}


_lock = threading.RLock()
_wanted: dict[str, set[Installation]] = {}
"""name -> the installations that are not given back yet; the last one takes the integration out."""


class Installation:
    """One `install` of an integration. `uninstall()` gives it back; so does the end of a `with` block.

    The integration goes when the last of its installations does, so that a block inside another one, or inside a
    process that installed for good, leaves things as it found them.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def uninstall(self) -> None:
        """Give it back. Calling it again changes nothing."""
        with _lock:
            wanted = _wanted.get(self.name, set())
            if self in wanted:
                wanted.discard(self)
                if not wanted:
                    uninstall(self.name)

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.uninstall()

    def __repr__(self) -> str:
        return f"Installation({self.name!r})"


def install(name: str) -> Installation:
    """Make another library able to call the registry. Reversible; installs nest.

    "torch"         torch.nn.functional.scaled_dot_product_attention, for the whole process
    "diffusers"     the name "sgl_kernels" for set_attention_backend and attention_backend
    "transformers"  the name "sgl_kernels" for attn_implementation, with its masks

    The last two change no model by themselves; `apply` serves one model without any of them.

    Raises ConfigError for an unknown name, and where the library is missing or of a version that is not known.
    """
    module = _module(name)
    with _lock:
        module.install()
        installation = Installation(name)
        _wanted.setdefault(name, set()).add(installation)
    return installation


def uninstall(name: str) -> None:
    """Take an integration out, whoever installed it and however often. Calling it again changes nothing."""
    module = _module(name)
    with _lock:
        _wanted.pop(name, None)
        if module.is_installed():
            module.uninstall()


def apply(
    model: Any,
    backend: str | None = None,
    *,
    attention: bool = True,
    norms: bool = True,
    linears: bool = True,
    padding: str = "compute",
) -> Any:
    """Serve one model's layers from the registry; see `sgl_kernels.integrations.applying.apply`.

    >>> applied = sgl_kernels.apply(pipe.transformer)
    >>> applied.remove()
    """
    return _apply().apply(model, backend, attention=attention, norms=norms, linears=linears, padding=padding)


def remove(model: Any) -> None:
    """Undo `apply` on a model."""
    _apply().remove(model)


def _apply() -> Any:
    return importlib.import_module("sgl_kernels.integrations.applying")


def _module(name: str) -> Any:
    if name not in LIBRARIES:
        from sgl_kernels.core.errors import ConfigError
        from sgl_kernels.core.names.backends import did_you_mean

        raise ConfigError(
            f"install: name is {name!r}{did_you_mean(name, LIBRARIES) or ';'} expected one of {', '.join(LIBRARIES)}"
        )
    return importlib.import_module(LIBRARIES[name])
