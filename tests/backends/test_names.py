"""The names people may type and the backends there are: one set, each with an order, a proof and a line of text."""

from __future__ import annotations

import pytest

from sgl_kernels.backends._order import FAMILIES, ORDER, rank
from sgl_kernels.core.device import parse_device
from sgl_kernels.core.names.backends import CANONICAL
from sgl_kernels.core.names.ops import OP_GROUPS
from sgl_kernels.core.registry import registry
from sgl_kernels.core.selection.implementation import Fidelity

EVERY = [i for op in registry.ops() for i in registry.implementations(op)]
LOSSY = {"sage_attn", "sage_attn3", "sparge_attn", "triton_int8", "sage_cpu"}


@pytest.mark.parametrize("name", CANONICAL)
def test_every_canonical_name_is_a_backend(name):
    assert name in registry.backends()


def test_every_module_joined():
    assert registry.failures == ()


@pytest.mark.parametrize("implementation", EVERY, ids=lambda i: f"{i.op}/{i.backend}")
def test_every_implementation_says_what_it_is(implementation):
    assert implementation.doc and len(implementation.doc) < 120
    packages = [p for p in implementation.requires.packages if not p.startswith("triton")]
    if packages:
        assert implementation.proof, "a vendor's kernel needs a proof that it is called right"


def test_lossy_attention_is_declared_and_nothing_else():
    declared = {i.backend for i in EVERY if i.op == "attention" and i.fidelity is Fidelity.LOSSY}
    assert declared == LOSSY


def test_every_row_of_the_order_table_names_backends_and_says_why():
    families = {*FAMILIES.values(), "rdna", "xe", "ascend", "musa", "apple", "cpu"}
    seen = set()
    for row in ORDER:
        assert (row.family, row.group) not in seen, "two rows for one question"
        seen.add((row.family, row.group))
        assert row.family in families and row.group in OP_GROUPS and len(row.evidence) > 10
        for name in row.order:
            of_group = {i.backend for i in EVERY if i.op in OP_GROUPS[row.group]}
            assert name in of_group, f"{row.family}/{row.group}: {name} implements none of that group"


def test_who_follows_our_triton_kernels_ranks_below_them_and_above_torch():
    hopper = parse_device("cuda:sm90")
    assert 0 < rank("flashinfer", "rope")(None, hopper) < 30 < rank("fa3", "attention")(None, hopper)
    assert rank("flashinfer", "rope")(None, parse_device("rocm:gfx942")) < 0
