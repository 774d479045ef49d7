"""The classes of shapes that a rule of the settings may name."""

from __future__ import annotations

import pytest
import torch

from sgl_kernels.core.names.ops import OP_GROUPS, SHAPE_CLASSES
from sgl_kernels.core.registry import registry
from sgl_kernels.ops.attention.spec import dense_facts, shape_class


@pytest.mark.parametrize(
    "sq, sk, expected",
    [
        (1, 100_000, "decode"),
        (8, 8, "decode"),
        (9, 512, "short"),
        (4096, 77, "short"),
        (9, 513, "medium"),
        (4096, 8191, "medium"),
        (9, 8192, "long"),
        (9, 0, "short"),
        (0, 0, "decode"),
    ],
)
def test_shape_classes(sq: int, sk: int, expected: str) -> None:
    q, kv = (torch.empty(1, n, 2, 16, device="meta") for n in (sq, sk))
    facts = dense_facts(q, kv, kv, None, False, "bottom_right", None, -1, -1, 0.0)
    assert shape_class(facts) == expected


def test_the_ops_that_tell_shapes_apart_are_those_the_settings_know_classes_of() -> None:
    told_apart = {name for name, op in registry.ops().items() if op.shape_class is not None}
    assert told_apart == {op for group in SHAPE_CLASSES for op in OP_GROUPS[group]}
    for group, classes in SHAPE_CLASSES.items():
        for op in map(registry.op, OP_GROUPS[group]):
            found = {
                op.shape_class(op.facts(*op.canonical(*case.fake(torch.float32)))) for case in op.cases()
            }
            assert found <= set(classes)
