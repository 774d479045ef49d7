"""A few hundred random calls of the C++ row kernels; `make fuzz` makes ten thousand."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.cpu_rowwise import MISSING, check
from tests.kernels.cpu_rowwise_random import random_call


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**63))
def test_random_calls_match_float64(seed):
    op, args = random_call(random.Random(seed))
    check(op, *args)
