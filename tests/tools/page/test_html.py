"""Report pages hold everything they show, escape what they are given, and tables print in three forms."""

from __future__ import annotations

import re

import pytest
import torch
from rich.console import Console

import sgl_kernels
from sgl_kernels.tools.page import html as report
from sgl_kernels.tools.page.charts import Bar, bar_chart, line_chart, number

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)


def page() -> str:
    return report.render_html(
        [
            report.Text("Hello", "one\n\ntwo <b>"),
            report.Code("Code", "a < b\nc"),
            report.Table(
                "Rows", ("op", "ms"), [("attention", "1.5"), (report.Mark("<bad>", "bad", "why"), "2")]
            ),
            report.Picture("Digits", PNG, caption="what came out"),
            report.Bars("Times", [Bar("ours", 1.0, group="a"), Bar("theirs", 3.0, group="b")], "ms", 1.0),
            report.Lines("Steps", {"ours": [1.0, 2.0], "stock": [3.0, 4.0]}, "ms"),
        ],
        title="A & B",
        subtitle="today",
    )


def test_page_needs_nothing_from_outside():
    text = page()
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "<script" not in text and "@import" not in text and "http" not in text


def test_page_escapes_what_it_is_given():
    text = page()
    assert "two &lt;b&gt;" in text and "&lt;bad&gt;" in text and "A &amp; B" in text
    assert "<bad>" not in text


def test_pictures_are_embedded(tmp_path):
    file = tmp_path / "grid.png"
    file.write_bytes(PNG)
    section = report.picture(file, "Grid", "caption")
    assert "data:image/png;base64,iVBORw0KGgo" in report.render_html([section])
    with pytest.raises(ValueError, match=r"picture is 'x.bmp', expected"):
        report.picture("x.bmp", "")


def test_charts_say_their_numbers_in_words():
    assert 'aria-label="ours: 1.00 ms; theirs: 3.00 ms"' in page()
    assert bar_chart([]) == "" and line_chart({}) == "" and line_chart({"a": []}) == ""
    assert "nan" in bar_chart([Bar("x", float("nan"))])


@pytest.mark.parametrize(
    "value, text", [(0, "0"), (1234.5, "1,234"), (12.345, "12.3"), (0.01234, "0.0123"), (1e-7, "1.00e-07")]
)
def test_numbers_keep_three_figures(value, text):
    assert number(value) == text


def test_what_ran_becomes_a_section():
    with sgl_kernels.record() as recorder:
        sgl_kernels.gelu_tanh(torch.ones(2, 3))
    table = report.ran(recorder.report())
    assert table.rows[0][:3] == ("gelu_tanh", table.rows[0][1], "1")
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.rich_table(table))
    assert "gelu_tanh" in console.export_text()


def test_markdown_escapes_bars():
    table = report.Table("", ("a", "b"), [("x|y", 1)])
    assert report.markdown_table(table) == "| a | b |\n| --- | --- |\n| x\\|y | 1 |"
