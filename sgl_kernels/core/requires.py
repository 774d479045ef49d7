"""The old path of `core.selection.requires`, for plug-ins, in this release. Import `sgl_kernels.backend` instead."""

import warnings

from .selection.requires import FLOATS as FLOATS
from .selection.requires import HALF as HALF
from .selection.requires import Requires as Requires

warnings.warn(
    "sgl_kernels.core.requires goes in the next release: import from sgl_kernels.backend",
    DeprecationWarning,
    stacklevel=2,
)
