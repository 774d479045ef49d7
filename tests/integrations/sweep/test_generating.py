"""`generate` of the well-known architectures: padded prompts, a static cache and beams give stock's tokens."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from tests.integrations.sweep.building import build
from tests.integrations.sweep.generating import NAMED, STRATEGIES, compare_generated


@pytest.mark.parametrize("name", NAMED)
def test_generate_gives_the_tokens_of_stock(name: str) -> None:
    faults, ran = compare_generated(*build(name))
    assert faults == {}
    assert ran == set(STRATEGIES)
