"""The old path of `core.selection.bugs`, for plug-ins, in this release. Import `sgl_kernels.backend` instead."""

import warnings

from .selection.bugs import Bug as Bug

warnings.warn(
    "sgl_kernels.core.bugs goes in the next release: import from sgl_kernels.backend",
    DeprecationWarning,
    stacklevel=2,
)
