"""Pages: what is escaped, refused and undefined; and sorting, searching, phones and print in a real browser."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from unisegdiff_pipeline.core.files import text_hash
from unisegdiff_pipeline.reports.page import (
    Column,
    Html,
    KeyFigure,
    Page,
    Section,
    Shown,
    Table,
    bullets,
    details,
    facts,
    figure,
    format_number,
    grid,
    key_figures,
    legend,
    link,
    notice,
    panels,
    paragraph,
    render_page,
    table,
    write_page,
)

PHONE = (390, 844)
DOT = Html('<svg class=plot role=img viewBox="0 0 10 10" width="442" height="300"><circle r="4"/></svg>')
CASES = Table(
    [Column("Case", "text"), Column("Dice", hint="overlap"), Column("Volume, ml", digits=1), Column("Interval")],
    [
        ["case_10", 0.5, 120.0, Shown("0.4 to 0.6", 0.4)],
        ["case_2", None, 3.25, Shown("none", None)],
        ["case_1", 0.9, 20.0, Shown("0.8 to 0.95", 0.8)],
        ["tumour_3", math.nan, 1.0, Shown("-1 to 1", -1.0)],
        ["case_4", 0.09, 7.0, Shown("0.05 to 0.1", 0.05)],
    ],
    caption="Cases",
    searchable=True,
)


def example() -> Page:
    body = [
        table(CASES),
        notice("Volumes are nominal.", "warning"),
        grid([figure(DOT, "A dot."), figure(DOT, "Another.")]),
        figure(DOT, "A wide one.", wide=True),
        panels([(DOT, "Image"), (DOT, "Mask")]),
        legend({"reference": "#35c8ff"}),
        details("Settings", [facts({"seed": "1"}), bullets(["one", "two"])]),
    ]
    lead = [key_figures([KeyFigure("Dice", "0.91", "0.89 to 0.93"), KeyFigure("HD95, mm", "2.1")])]
    return Page("A report", [Section("Cases", body, "All of them."), Section("Cases", [paragraph("more")])], lead=lead)


def only_table(rows: list[list[object]], columns: int = 1) -> str:
    return table(Table([Column(f"c{i}", "text") for i in range(columns)], rows))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- markup


def test_text_is_escaped_everywhere() -> None:
    evil = '<script>alert(1)</script>"&'
    parts = [
        paragraph(evil),
        notice(evil),
        bullets([evil]),
        facts({evil: evil}),
        details(evil, []),
        figure(DOT, evil),
        key_figures([KeyFigure(evil, evil, evil)]),
        link("a.html", evil),
        panels([(DOT, evil)]),
        legend({evil: evil}),
        table(Table([Column(evil, "text", hint=evil)], [[evil], [Shown(evil, 1.0)]], caption=evil)),
    ]
    text = render_page(Page(evil, [Section(evil, parts, evil)], evil, [paragraph(evil)], evil))
    assert "<script>alert" not in text
    assert text.count("<script>") == 1  # the page's own


def test_markup_stays_markup() -> None:
    assert paragraph(Html("<b>x</b>")) == "<p><b>x</b></p>"
    assert ">x</a></td>" in only_table([[link("x.html", "x")]])


def test_long_names_can_be_wrapped_between_their_parts_and_numbers_cannot() -> None:
    columns = [Column("name", "text")]
    names = ["case_0001", "training.learning_rate", "0.743 to 0.857", "a & b_", "_x", "a sentence. Another"]
    text = table(Table(columns, [[name] for name in names]))
    assert re.findall("<td class=text>(.*?)</td>", text) == [
        "case_<wbr>0001",
        "training.<wbr>learning_<wbr>rate",
        "0.743 to 0.857",
        "a &amp; b_",
        "_x",
        "a sentence. Another",
    ]


def test_undefined_cells_are_dashes_without_a_value() -> None:
    for cell in (None, math.nan, math.inf, Shown("none", None), Shown("none", math.nan)):
        row = table(Table([Column("c")], [[cell]]))
        assert 'class="number undefined"' in row
        assert "data-value" not in row


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.12345, 3, "0.123"),
        (-0.5, 1, "\N{MINUS SIGN}0.5"),
        (-0.0004, 3, "0.000"),
        (12, 3, "12"),
        (-3, 3, "\N{MINUS SIGN}3"),
        (math.nan, 3, "\N{EN DASH}"),
        (None, 3, "\N{EN DASH}"),
    ],
)
def test_numbers(value: float | None, digits: int, text: str) -> None:
    assert format_number(value, digits) == text


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1 has 1 cells, but there are 2 columns"):
        only_table([["a", "b"], ["a"]], columns=2)


@pytest.mark.parametrize("target", ["https://a.b/c", "/abs/olute.html", "javascript:alert(1)", "file:///x", "//a.b"])
def test_links_to_elsewhere_are_refused(target: str) -> None:
    with pytest.raises(ValueError, match="absolute"):
        link(target, "x")


HOSTILE = ("href=//x", 'src="https://x"', "url(//x)", "@import '//x'", "<img src=//x>", "$\\frac{$", "=1+1", "</b>")


@pytest.mark.parametrize("name", HOSTILE)
def test_text_that_reads_like_markup_is_shown_as_it_is(name: str) -> None:
    parts = [
        paragraph(name),
        bullets([name]),
        facts({name: name}),
        details(name, [Html("<style>a { }</style>")]),
        figure(DOT, name),
        link("a.html", name),
        legend({name: "#000000"}),
        key_figures([KeyFigure(name, name, name)]),
        table(Table([Column(name, "text", hint=name)], [[name], [Shown(name, 1.0)]], caption=name)),
    ]
    text = render_page(Page(name, [Section(name, parts, name)], name, [paragraph(name)], name))
    assert text.count(html.escape(name)) >= 18
    assert (name in text) == (html.escape(name) == name)


@pytest.mark.parametrize(
    "content",
    [
        '<img src="https://example.org/a.png">',
        "<img src=//example.org/a.png>",
        '<img srcset="http://example.org/a.png 2x">',
        '<use xlink:href="https://example.org/a.svg#b"/>',
        '<div style="background: url(https://example.org/a.png)"></div>',
        "<style>@import 'https://example.org/a.css';</style>",
        '<svg><rect fill="url(https://example.org/a.svg#b)"/></svg>',
        '<form action="https://example.org"></form>',
    ],
)
def test_pages_that_would_load_something_are_refused(content: str) -> None:
    with pytest.raises(ValueError, match=r"example\.org"):
        render_page(Page("x", [Section("s", [Html(content)])]))


def test_namespaces_and_addresses_in_text_are_no_loads() -> None:
    svg = Html('<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"></svg>')
    render_page(Page("x", [Section("s", [svg, paragraph("see https://example.org/a.png")])]))


def test_sections_of_equal_titles_have_places_of_their_own() -> None:
    text = render_page(Page("x", [Section(title, []) for title in ("A b", "A b", "A b 2", "Ö", "Ö")]))
    anchors = re.findall(r"<section id=(\S+?)>", text)
    assert len(set(anchors)) == 5
    assert re.findall(r'<li><a href="#([^"]+)"', text) == anchors


def test_the_policy_allows_the_pages_own_script_alone() -> None:
    text = render_page(example())
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text


def test_refresh_is_asked_for_only_where_wanted() -> None:
    assert "refresh" not in render_page(Page("x", [])).partition("<style>")[0]
    assert '<meta http-equiv="refresh" content="30">' in render_page(Page("x", [], refresh_s=30))


def test_equal_pages_are_equal_bytes_and_a_refused_one_leaves_the_old(tmp_path: Path) -> None:
    path = write_page(tmp_path / "a" / "report.html", example())
    first = path.read_bytes()
    assert write_page(path, example()).read_bytes() == first
    with pytest.raises(ValueError, match="hold everything"):
        write_page(path, Page("x", [Section("s", [Html('<img src="https://a.b/c">')])]))
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


# ------------------------------------------------------------------------------------------------------------ browser


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return write_page(tmp_path / "report.html", example())


def column(opened, index: int) -> list[str]:  # type: ignore[no-untyped-def]
    return opened.texts(f"tbody tr td:nth-child({index + 1})")


def test_a_click_sorts_and_undefined_values_stay_last(report: Path, open_page: Callable) -> None:
    opened = open_page(report)
    dice = opened.page.get_by_role("button", name="Dice")
    dice.click()
    assert column(opened, 0) == ["case_4", "case_10", "case_1", "case_2", "tumour_3"]
    assert opened.page.locator("th", has_text="Dice").get_attribute("aria-sort") == "ascending"
    dice.click()
    assert column(opened, 0) == ["case_1", "case_10", "case_4", "case_2", "tumour_3"]
    assert opened.page.locator("th", has_text="Dice").get_attribute("aria-sort") == "descending"
    opened.page.get_by_role("button", name="Volume, ml").click()
    assert column(opened, 2) == ["1.0", "3.2", "7.0", "20.0", "120.0"]
    assert opened.page.locator("th", has_text="Dice").get_attribute("aria-sort") == "none"
    opened.page.get_by_role("button", name="Interval").click()
    assert column(opened, 3)[0] == "-1 to 1"
    opened.require_quiet()


def test_a_line_says_where_a_table_goes_on_at_its_side(tmp_path: Path, open_page: Callable) -> None:
    wide = table(Table([Column(f"a rather long heading {i}") for i in range(8)], [[i / 7 for i in range(8)]]))
    narrow = table(Table([Column("n")], [[1]]))
    page = write_page(tmp_path / "wide.html", Page("x", [Section("s", [wide, narrow])]))
    on_phone, on_desktop = open_page(page, (390, 844)), open_page(page, (2400, 900))
    assert on_phone.texts(".scroll-hint") == ["\N{LEFT RIGHT ARROW} scroll sideways for more columns"]
    assert on_desktop.texts(".scroll-hint") == []
    on_phone.require_quiet()


def test_the_same_picture_is_held_once() -> None:
    """Two figures with one slice: the second refers to the first; another slice stays what it is."""
    first, other = (f'<image xlink:href="data:image/png;base64,{data}" width="2"/>' for data in ("AAAA", "BBBB"))
    text = render_page(Page("x", [Section("s", [Html(f"<svg>{first}</svg><svg>{first}</svg><svg>{other}</svg>")])]))
    assert text.count("base64,AAAA") == text.count("base64,BBBB") == 1
    name = f"picture-{text_hash(first)}"
    assert f'<svg><image id="{name}" xlink:href="data:image/png;base64,AAAA" width="2"/></svg>' in text
    assert f'<svg><use xlink:href="#{name}"/></svg>' in text


def test_names_sort_by_their_numbers_and_the_keyboard_works(report: Path, open_page: Callable) -> None:
    opened = open_page(report)
    opened.page.get_by_role("button", name="Case").focus()
    opened.page.keyboard.press("Enter")
    assert column(opened, 0) == ["case_1", "case_2", "case_4", "case_10", "tumour_3"]


def test_searching_keeps_the_rows_that_hold_all_words(report: Path, open_page: Callable) -> None:
    opened = open_page(report)
    field = opened.page.get_by_label("Search: Cases")
    assert opened.texts(".search output") == ["5 rows"]
    field.fill("CASE 0.9")
    assert column(opened, 0) == ["case_1"]
    assert opened.texts(".search output") == ["1 of 5 rows"]
    field.fill("tumour")
    opened.page.get_by_role("button", name="Dice").click()
    assert column(opened, 0) == ["tumour_3"]  # sorting brings no hidden row back
    field.fill("")
    assert len(column(opened, 0)) == 5
    opened.require_quiet()


def test_a_small_picture_grows_at_a_click(report: Path, open_page: Callable) -> None:
    opened = open_page(report)
    picture = opened.page.locator(".panels figure").first
    before = picture.bounding_box()["width"]
    picture.click()
    assert picture.bounding_box()["width"] > 2 * before
    picture.press("Enter")
    assert picture.bounding_box()["width"] == before


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_only_tables_and_wide_figures_scroll_sideways(report: Path, open_page: Callable, dark: bool) -> None:
    opened = open_page(report, size=PHONE, dark=dark)
    assert not opened.scrolls_sideways()
    wide = opened.page.locator("figure.wide .picture")
    assert wide.evaluate("e => e.scrollWidth > e.clientWidth") is True
    assert opened.page.locator(".grid .picture").first.evaluate("e => e.scrollWidth <= e.clientWidth") is True
    assert opened.page.evaluate("getComputedStyle(document.body).fontSize") == "16px"
    opened.require_quiet()


def test_print_shows_what_is_folded_and_hides_what_is_operated(report: Path, open_page: Callable) -> None:
    opened = open_page(report, dark=True)
    assert "seed" not in opened.texts("dt")
    paper = "getComputedStyle(document.body).backgroundColor"
    assert opened.page.evaluate(paper) == "rgb(20, 24, 29)"
    opened.page.emulate_media(media="print")
    assert opened.page.evaluate(paper) == "rgb(254, 254, 254)"
    assert opened.texts(".search") == []
    assert opened.texts("nav") == []
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert "seed" in opened.texts("dt")
    opened.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert "seed" not in opened.texts("dt")
    scroll = opened.page.locator(".table-scroll").first
    assert scroll.evaluate("e => getComputedStyle(e).overflowX") == "visible"


def test_foreign_script_does_not_run(tmp_path: Path, open_page: Callable) -> None:
    injected = Html("<script>document.title = 'run'</script><p onclick='1' id=p>x</p>")
    opened = open_page(write_page(tmp_path / "p.html", Page("safe", [Section("s", [injected])])))
    assert opened.page.title() == "safe"
    assert any("Content Security Policy" in text for text in opened.complaints)


def test_without_script_the_table_is_still_read(report: Path, browser) -> None:  # type: ignore[no-untyped-def]
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("tbody tr").count() == 5
    assert page.locator(".search").count() == 0
    context.close()
