"""Fuzzes the C++ norm, rope, modulation and activation ops, SGL_KERNELS_FUZZ_EXAMPLES=10000 by default."""

from __future__ import annotations

import os
import random

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.cpu_rowwise import MISSING, REFERENCES, check, run
from tests.kernels.cpu_rowwise_random import extreme, random_call

EXAMPLES = int(os.environ.get("SGL_KERNELS_FUZZ_EXAMPLES", "10000"))


def test_the_extension_is_there():
    assert MISSING is None, MISSING


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**63))
def test_fuzz_row_kernels(seed):
    """One seed is one call: op, shapes, strides, dtypes and awkward values follow from it."""
    op, args = random_call(random.Random(seed))
    check(op, *args)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**63))
def test_fuzz_norms_at_the_ends_of_float32(seed):
    """Plain torch errs freely there, so the bound is one of its own: some roundings of the normalised value."""
    op, args = extreme(random.Random(seed))
    wants = REFERENCES[op](*(a.double().contiguous() if isinstance(a, torch.Tensor) else a for a in args))
    for out, want in zip(run(op, *args), wants if isinstance(wants, tuple) else (wants,), strict=True):
        assert torch.isfinite(out).all(), f"{op}: {args}"
        assert (out.double() - want).norm() <= 2e-6 * want.norm() + 1e-40, f"{op}: {args}"
