"""What a backend is declared with: the one module that another distribution's backend imports.

`Implementation` says what serves an op, `Requires` what must be there, `Rejected` with a `Reason` why a call is turned
away, `Bug` which releases get what wrong, `Fidelity` whether the answer is exact, `Place` a rank and what it rests on.
HALF and FLOATS are sets of dtypes.
The facts of each op are what `rejects`, `rank` and `configs` are asked with. docs/adding-a-backend.md shows a whole
backend, and `sgl_kernels.testing.check_backend` tests one.
"""

from __future__ import annotations

from sgl_kernels.core.device import Device as Device
from sgl_kernels.core.selection.bugs import Bug as Bug
from sgl_kernels.core.selection.implementation import Fidelity as Fidelity
from sgl_kernels.core.selection.implementation import Implementation as Implementation
from sgl_kernels.core.selection.implementation import Place as Place
from sgl_kernels.core.selection.requires import FLOATS as FLOATS
from sgl_kernels.core.selection.requires import HALF as HALF
from sgl_kernels.core.selection.requires import Requires as Requires
from sgl_kernels.core.selection.verdict import Reason as Reason
from sgl_kernels.core.selection.verdict import Rejected as Rejected
from sgl_kernels.ops.activation.spec import ActivationFacts as ActivationFacts
from sgl_kernels.ops.attention.spec import AttentionFacts as AttentionFacts
from sgl_kernels.ops.attention.spec import VarlenFacts as VarlenFacts
from sgl_kernels.ops.linear.spec import LinearFacts as LinearFacts
from sgl_kernels.ops.modulate.spec import ModulateFacts as ModulateFacts
from sgl_kernels.ops.norm.spec import GroupNormFacts as GroupNormFacts
from sgl_kernels.ops.norm.spec import NormFacts as NormFacts
from sgl_kernels.ops.nvfp4.spec import DequantizeFacts as NVFP4DequantizeFacts  # noqa: F401
from sgl_kernels.ops.nvfp4.spec import LinearFacts as NVFP4LinearFacts  # noqa: F401
from sgl_kernels.ops.nvfp4.spec import QuantizeFacts as NVFP4QuantizeFacts  # noqa: F401
from sgl_kernels.ops.rope.spec import RopeFacts as RopeFacts
