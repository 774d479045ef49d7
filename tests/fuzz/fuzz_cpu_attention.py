"""Fuzzes the C++ attention: pytest tests/fuzz/fuzz_cpu_attention.py, SGL_KERNELS_FUZZ_EXAMPLES=10000 by default."""

from __future__ import annotations

import os
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.cpu_attention import MISSING, check, random_call

EXAMPLES = int(os.environ.get("SGL_KERNELS_FUZZ_EXAMPLES", "10000"))


def test_the_extension_is_there():
    assert MISSING is None, MISSING


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**63))
def test_fuzz_attention(seed):
    """One seed is one call: shapes, strides, masks, windows, softcap, scales and dtypes follow from it."""
    check(random_call(random.Random(seed)))
