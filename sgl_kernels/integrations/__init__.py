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
_blocks: dict[str, int] = {}  # open `with install(name)` blocks
_stays: set[str] = set()  # installed by a plain call, so that the end of a block does not take it out


class Installation:
    """An installed integration. `uninstall()` takes it out; so does the end of the last `with` block that needs it."""

    def __init__(self, name: str, alone: bool = True) -> None:
        self.name = name
        self._alone = alone  # nobody else's plain call keeps it installed

    def uninstall(self) -> None:
        """Take it out. Calling it again changes nothing."""
        uninstall(self.name)

    def __enter__(self) -> Installation:
        with _lock:
            _blocks[self.name] = _blocks.get(self.name, 0) + 1
            if self._alone:
                _stays.discard(self.name)  # the block owns it, and takes it out
            _module(self.name).install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _lock:
            _blocks[self.name] -= 1
            if _blocks[self.name] == 0 and self.name not in _stays:
                self.uninstall()

    def __repr__(self) -> str:
        return f"Installation({self.name!r})"


def install(name: str) -> Installation:
    """Make another library able to call the registry. Reversible, and again changes nothing.

    "torch"         torch.nn.functional.scaled_dot_product_attention, for the whole process
    "diffusers"     the name "sgl_kernels" for set_attention_backend and attention_backend
    "transformers"  the name "sgl_kernels" for attn_implementation, with its masks

    The last two change no model by themselves; `apply` serves one model without any of them.

    Raises ConfigError for an unknown name, and where the library is missing or of a version that is not known.
    """
    module = _module(name)
    with _lock:
        alone = name not in _stays
        module.install()
        _stays.add(name)
    return Installation(name, alone)


def uninstall(name: str) -> None:
    """Undo `install(name)`. Calling it again changes nothing."""
    module = _module(name)
    with _lock:
        _stays.discard(name)
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
        from sgl_kernels.core.names import did_you_mean

        raise ConfigError(
            f"install: name is {name!r}{did_you_mean(name, LIBRARIES) or ';'} expected one of {', '.join(LIBRARIES)}"
        )
    return importlib.import_module(LIBRARIES[name])
