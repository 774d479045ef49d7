"""The old path of `core.selection.verdict`, for plug-ins, in this release. Import `sgl_kernels.backend` instead."""

import warnings

from .selection.verdict import Candidate as Candidate
from .selection.verdict import Reason as Reason
from .selection.verdict import Rejected as Rejected
from .selection.verdict import Selection as Selection

warnings.warn(
    "sgl_kernels.core.verdict goes in the next release: import from sgl_kernels.backend",
    DeprecationWarning,
    stacklevel=2,
)
