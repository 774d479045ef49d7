"""For people who add a backend: run the whole parity matrix on it."""

from __future__ import annotations

from sgl_kernels.testing.suite import Finding as Finding
from sgl_kernels.testing.suite import check_backend as check_backend
