"""transformers: "sgl_kernels" as an attn_implementation, its masks included.

Both interfaces are registered: without a mask function under the same name, transformers hands a custom
attention no padding mask at all, and the result is wrong without an error. A model class whose code asks for
"sdpa" or "eager" by name cannot be set to another name: it keeps the implementation it has, and the log says so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from packaging.version import Version

from sgl_kernels.core.errors import ConfigError
from sgl_kernels.core.log import warn_once
from sgl_kernels.core.selection.packages import installed_version
from sgl_kernels.integrations.holding import Exchange, Hold
from sgl_kernels.integrations.transformers_attention import attention_interface, mask_interface
from sgl_kernels.integrations.transformers_contract import HARMLESS, NAME, read_ahead, takes_name

__all__ = ["HARMLESS", "NAME", "attention_interface", "hold", "install", "is_installed", "uninstall"]

SINCE = "4.57"
"""The first release with both interfaces as they are used here."""


_setting: ContextVar[bool] = ContextVar("sgl_kernels_setting", default=False)


def _interfaces() -> tuple[Any, Any]:
    version = installed_version("transformers")
    if version is None:
        raise ConfigError("transformers is not installed: pip install 'sgl_kernels[transformers]'")
    if version < Version(SINCE):
        raise ConfigError(
            f"transformers {version} is installed, {SINCE} or newer is needed: pip install 'transformers>={SINCE}'"
        )
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    return AttentionInterface, AttentionMaskInterface


def install() -> None:
    """Make "sgl_kernels" an attn_implementation. Changes no model and no default; again changes nothing."""
    _state.install()


def uninstall() -> None:
    """Take the name out of transformers again, but for applied models. Models set to it raise when they are called."""
    _interfaces()
    _state.uninstall()


def is_installed() -> bool:
    """Whether `install` is in force."""
    return _state.everywhere


def hold() -> Hold:
    """Keep the name registered while an applied model needs it."""
    return _state.hold()


class _State(Exchange):
    """The exchange of transformers' tables and methods, which it remembers."""

    def __init__(self) -> None:
        super().__init__(_register, _unregister)
        self.previous: dict[str, Callable[..., Any]] = {}


def _register() -> None:
    attention_table, mask_table = _interfaces()
    attention_table.register(NAME, attention_interface)
    mask_table.register(NAME, mask_interface)
    if not _state.previous:
        from transformers import PreTrainedModel

        for name, ours in (("get_correct_attn_implementation", _correct), ("set_attn_implementation", _set)):
            _state.previous[name] = getattr(PreTrainedModel, name)
            setattr(PreTrainedModel, name, ours)


def _unregister() -> None:
    if "transformers" not in sys.modules:
        return
    attention_table, mask_table = _interfaces()
    attention_table._global_mapping.pop(NAME, None)
    mask_table._global_mapping.pop(NAME, None)
    from transformers import PreTrainedModel

    for name, theirs in _state.previous.items():
        if getattr(PreTrainedModel, name) in (_correct, _set):  # else somebody wrapped us, and stays
            setattr(PreTrainedModel, name, theirs)
    _state.previous.clear()


_state = _State()


def _original(name: str) -> Callable[..., Any]:
    from transformers import PreTrainedModel

    return _state.previous.get(name) or getattr(PreTrainedModel, name)


def _correct(self: Any, requested_attention: str | None, *args: Any, **kwargs: Any) -> Any:
    """transformers' check of an implementation for a class: ours is refused in silence where it cannot be set."""
    theirs = _original("get_correct_attn_implementation")
    current = self.config._attn_implementation
    if requested_attention == NAME and not takes_name(type(self)):
        cls = type(self).__name__
        warn_once(
            f"integrations.transformers.{cls}",
            f'sgl_kernels in transformers: {cls} asks for "sdpa" or "eager" by name and keeps its own; '
            "sgl_kernels.apply(model) serves what can be served of it",
        )
        return theirs(self, None if current == NAME else current, *args, **kwargs)
    if requested_attention == NAME:
        read_ahead(type(self), self.config)
    if requested_attention == "sdpa" and not self._supports_sdpa and (_setting.get() or current == NAME):
        return "eager"  # what such a part of a model has beside "sdpa" by default
    return theirs(self, requested_attention, *args, **kwargs)


def _set(self: Any, attn_implementation: Any, *args: Any, **kwargs: Any) -> Any:
    """transformers' setter; to our name and back, parts that have no SDPA get what they have by default."""
    from transformers import PreTrainedModel

    parts = (m.config._attn_implementation for m in self.modules() if isinstance(m, PreTrainedModel))
    token = _setting.set(attn_implementation == NAME or NAME in parts or self.__dict__.get(_WAS_SET, False))
    try:
        result = _original("set_attn_implementation")(self, attn_implementation, *args, **kwargs)
    finally:
        _setting.reset(token)
    if attn_implementation == NAME:
        self.__dict__[_WAS_SET] = True
    return result


_WAS_SET = "_sgl_kernels_was_set"
