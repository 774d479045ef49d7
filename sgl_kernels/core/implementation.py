"""The old path of `core.selection.implementation`, for plug-ins; import `sgl_kernels.backend` instead."""

import warnings

from .selection.implementation import Fidelity as Fidelity
from .selection.implementation import Implementation as Implementation

warnings.warn(
    "sgl_kernels.core.implementation goes in the next release: import from sgl_kernels.backend",
    DeprecationWarning,
    stacklevel=2,
)
