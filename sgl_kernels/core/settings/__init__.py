"""What was said: settings from built-in values, a file, the environment and flags, each value checked once."""

from sgl_kernels.core.names.ops import OP_GROUPS, OPS
from sgl_kernels.core.selection.policy import OpPolicy, Rule, Scope

from .layer import Layer, Located
from .load import check_files, load_settings
from .sections import Apple, CacheDit, CacheKnobs, CloudStorage, Quantization, Rocm, Runtime, TraceSettings
from .settings import SOURCES, Settings, settle

__all__ = [
    "OPS",
    "OP_GROUPS",
    "SOURCES",
    "Apple",
    "CacheDit",
    "CacheKnobs",
    "CloudStorage",
    "Layer",
    "Located",
    "OpPolicy",
    "Quantization",
    "Rocm",
    "Rule",
    "Runtime",
    "Scope",
    "Settings",
    "TraceSettings",
    "check_files",
    "load_settings",
    "settle",
]
