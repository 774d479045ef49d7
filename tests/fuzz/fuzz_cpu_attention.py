"""Fuzzes the C++ attention: pytest tests/fuzz/fuzz_cpu_attention.py, SGL_KERNELS_FUZZ_EXAMPLES=10000 by default.

One seed is one call: shapes, strides, masks, windows, softcap, scales and dtypes follow from it.
"""

from __future__ import annotations

import os
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.cpu_attention import MISSING, check, random_call
from tests.kernels.cpu_attention_extremes import check_extreme, check_extreme_sage, random_extreme
from tests.kernels.cpu_attention_families import (
    check_out_only,
    check_sage,
    check_varlen,
    random_sage,
    random_varlen,
)

EXAMPLES = int(os.environ.get("SGL_KERNELS_FUZZ_EXAMPLES", "10000"))
SETTINGS = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
SEEDS = st.integers(0, 2**63)


def test_the_extension_is_there():
    assert MISSING is None, MISSING


@SETTINGS
@given(SEEDS)
def test_fuzz_attention(seed):
    check(random_call(random.Random(seed)))


@SETTINGS
@given(SEEDS)
def test_fuzz_attention_without_lse(seed):
    check_out_only(random_call(random.Random(seed)))


@SETTINGS
@given(SEEDS)
def test_fuzz_varlen(seed):
    check_varlen(*random_varlen(random.Random(seed)))


@SETTINGS
@given(SEEDS)
def test_fuzz_sage(seed):
    check_sage(*random_sage(random.Random(seed)))


@SETTINGS
@given(SEEDS, st.booleans())
def test_fuzz_extremes(seed, lse):
    check_extreme(random_extreme(random.Random(seed)), lse)


@SETTINGS
@given(SEEDS)
def test_fuzz_sage_extremes(seed):
    check_extreme_sage(random_extreme(random.Random(seed)))
