"""Fuzzes the C++ norm, rope, modulation and activation ops, SGL_KERNELS_FUZZ_EXAMPLES=10000 by default."""

from __future__ import annotations

import os
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.cpu_rowwise import MISSING, check
from tests.kernels.cpu_rowwise_random import random_call

EXAMPLES = int(os.environ.get("SGL_KERNELS_FUZZ_EXAMPLES", "10000"))


def test_the_extension_is_there():
    assert MISSING is None, MISSING


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**63))
def test_fuzz_row_kernels(seed):
    """One seed is one call: op, shapes, strides, dtypes and awkward values follow from it."""
    op, args = random_call(random.Random(seed))
    check(op, *args)
