"""Write the table of variables into docs/settings.md, between its two markers."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from sgl_kernels.core.settings.listing import markdown

PAGE = Path(__file__).with_name("settings.md")
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->"

if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    PAGE.write_text(f"{before}\n{markdown()}\n{after}", encoding="utf-8")
