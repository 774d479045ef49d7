"""docs/where-is.md answers what somebody new asks: every path is there, and what it says to look for is in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ANSWERS = re.findall(
    r"^\| (.+\?) \| `(.+?)` \| `(.+?)` \|$", (ROOT / "docs" / "where-is.md").read_text(), re.M
)


def test_there_are_twenty_questions():
    assert len(ANSWERS) >= 20


@pytest.mark.parametrize("question, path, words", ANSWERS, ids=[path for _, path, _ in ANSWERS])
def test_the_answer_is_where_the_page_says(question, path, words):
    assert words in (ROOT / path).read_text(), f"{question}: {path} no longer holds {words!r}"


def test_paths_in_the_maps_of_the_source_are_there():
    text = (ROOT / "csrc" / "README.md").read_text()
    named = set(re.findall(r"`((?:cpu|skeleton|tests|sgl_kernels|backends)/[\w./-]+\.\w+)`", text))
    assert len(named) > 8
    places = (ROOT, ROOT / "csrc", ROOT / "sgl_kernels")
    assert [n for n in sorted(named) if not any((p / n).is_file() for p in places)] == []
