"""HTML pages in one file: sections, tables that sort and search, figures; nothing is loaded from anywhere.

Every text is escaped unless it is `Html`, so that names of cases, classes and files cannot become markup. The page
forbids the browser to load or to run anything that is not in it (Content-Security-Policy), works offline and without
JavaScript (which adds sorting and searching), follows the dark mode of the reader's system and prints in light colours.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

from unisegdiff_pipeline.core.files import atomic_path, text_hash

MANY_COLUMNS = 12  # more are printed across a page in landscape
ASSETS = Path(__file__).parent / "assets"
UNDEFINED = "\N{EN DASH}"
# What a browser loads by itself or follows: attributes that hold addresses, and style sheets.
_ADDRESSES = frozenset(
    ("src", "srcset", "data", "poster", "action", "formaction", "href", "xlink:href", "background", "manifest", "ping")
)
_STYLES = frozenset(
    ("style", "fill", "stroke", "clip-path", "mask", "filter", "cursor", "marker-start", "marker-mid", "marker-end")
)
_EXTERNAL = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//[^\s\"'>)]*", re.IGNORECASE)
_IN_STYLES = re.compile(rf"(?:url\(|@import)\s*[\"']?\s*({_EXTERNAL.pattern})", re.IGNORECASE)


class Html(str):
    """Markup that goes into a page as it is. Every other text is escaped."""

    __slots__ = ()


@dataclass(frozen=True)
class Shown:
    """A table cell whose text is not its value, such as "0.81 (0.78 to 0.84)".

    Attributes:
        text: what is shown.
        value: what the column is sorted by; None or NaN sorts last, in either direction.
    """

    text: str
    value: float | None


Cell = str | float | int | None | Shown


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: heading.
        kind: numbers stand on the right.
        digits: decimals of float cells.
        hint: what the heading means, shown when a pointer rests on it.
    """

    title: str
    kind: Literal["text", "number"] = "number"
    digits: int = 3
    hint: str = ""


def numbers(*titles: str) -> list[Column]:
    """Columns of numbers that need no further word."""
    return [Column(title) for title in titles]


@dataclass(frozen=True)
class Table:
    """Rows of cells. None and NaN are shown as a dash and sort last.

    Attributes:
        columns: headings, from left to right; the first column stays in view where the table is scrolled sideways.
        rows: cells of each row, as many as there are columns.
        caption: a line above the table; it also names the search field.
        sortable: a click on a heading sorts by it.
        searchable: a field above the table hides the rows that do not hold all words typed.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    sortable: bool = True
    searchable: bool = False


@dataclass(frozen=True)
class KeyFigure:
    """One of the few numbers that a page opens with."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page, listed in its contents.

    Attributes:
        title: heading.
        body: what stands below it, from the functions of this module.
        intro: a sentence or two under the heading.
    """

    title: str
    body: Sequence[Html]
    intro: str = ""


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: heading, and the name of the browser's tab.
        sections: in reading order.
        subtitle: a line under the title, such as what was compared with what.
        lead: what stands above the first section, such as key figures and notices.
        footer: last line, such as the version that wrote the page.
        refresh_s: seconds after which the browser reads the file again; None for a page that is finished.
    """

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    lead: Sequence[Html] = ()
    footer: str = ""
    refresh_s: int | None = None


def markup(text: str) -> Html:
    """Escape a text, unless it is markup already."""
    return text if isinstance(text, Html) else Html(html.escape(text))


def paragraph(text: str, quiet: bool = False) -> Html:
    """A paragraph; quiet ones are small and grey."""
    return Html(f"<p{' class=quiet' if quiet else ''}>{markup(text)}</p>")


def notice(text: str, kind: Literal["note", "warning"] = "note") -> Html:
    """A framed remark; warnings are marked by colour and by the word."""
    word = "<strong>Warning:</strong> " if kind == "warning" else ""
    return Html(f'<p class="notice {kind}">{word}{markup(text)}</p>')


def key_figures(items: Iterable[KeyFigure]) -> Html:
    """A row of large numbers; a grid where the window is narrow."""
    cells = "".join(
        f"<div><dt>{markup(item.label)}</dt><dd>{markup(item.value)}"
        f"{f'<small>{markup(item.detail)}</small>' if item.detail else ''}</dd></div>"
        for item in items
    )
    return Html(f"<dl class=key-figures>{cells}</dl>")


def facts(items: Mapping[str, str]) -> Html:
    """Names and values in two columns, such as settings."""
    rows = "".join(f"<dt>{markup(name)}</dt><dd>{markup(value)}</dd>" for name, value in items.items())
    return Html(f"<dl class=facts>{rows}</dl>")


def bullets(items: Iterable[str], names: bool = False) -> Html:
    """A list; one of names, such as those of cases, stands in columns."""
    kind = " class=names" if names else ""
    return Html(f"<ul{kind}>{''.join(f'<li>{markup(item)}</li>' for item in items)}</ul>")


def details(title: str, body: Sequence[Html]) -> Html:
    """A part that opens at a click on its title; it is open in print."""
    return Html(f"<details><summary>{markup(title)}</summary>{''.join(body)}</details>")


def subsection(title: str, body: Sequence[Html]) -> Html:
    """A part of a section with a smaller heading, kept off the contents."""
    return Html(f"<section class=part><h3>{markup(title)}</h3>{''.join(body)}</section>")


def link(target: str, text: str) -> Html:
    """A link to a file beside the page or to a place in it.

    Raises:
        ValueError: for a target that is an absolute address or path, which would not survive moving the folder.
    """
    if re.match(r"[a-z][a-z0-9+.-]*:|/", target, re.IGNORECASE):
        raise ValueError(f"target {target!r} is absolute; link to files by their path relative to the page")
    return Html(f'<a href="{html.escape(target)}">{markup(text)}</a>')


def figure(content: Html, caption: str = "", wide: bool = False) -> Html:
    """A picture with its caption.

    Args:
        content: markup of the picture, such as `figures.draw` gives.
        caption: text below it.
        wide: the picture keeps its size in a narrow window, where it is scrolled sideways, instead of shrinking
            until nobody can read it.
    """
    below = f"<figcaption>{markup(caption)}</figcaption>" if caption else ""
    return Html(f"<figure{' class=wide' if wide else ''}><div class=picture>{content}</div>{below}</figure>")


def grid(items: Iterable[Html], min_width_px: int = 360) -> Html:
    """Items side by side, as many as the window has room for."""
    return Html(f'<div class=grid style="--item:{min_width_px}px">{"".join(items)}</div>')


def panels(items: Iterable[tuple[Html, str]]) -> Html:
    """Small pictures of one kind side by side, each with a short title; two a row on a phone."""
    cells = "".join(f"<figure><figcaption>{markup(title)}</figcaption>{content}</figure>" for content, title in items)
    return Html(f"<div class=panels>{cells}</div>")


def legend(entries: Mapping[str, str]) -> Html:
    """What the colours of lines in pictures mean: name => CSS colour, or a gradient."""
    items = "".join(
        f'<li><i style="background:{html.escape(color)}"></i>{markup(name)}</li>' for name, color in entries.items()
    )
    return Html(f"<ul class=legend>{items}</ul>")


def table(content: Table) -> Html:
    """A table.

    Raises:
        ValueError: for a row that has more or fewer cells than there are columns.
    """
    for index, row in enumerate(content.rows):
        if len(row) != len(content.columns):
            raise ValueError(f"row {index} has {len(row)} cells, but there are {len(content.columns)} columns")
    caption = f"<caption>{markup(content.caption)}</caption>" if content.caption else ""
    head = "".join(_heading(column) for column in content.columns)
    rows = "".join(
        f"<tr>{''.join(_cell(cell, column) for cell, column in zip(row, content.columns, strict=True))}</tr>"
        for row in content.rows
    )
    flags = (" data-sortable" if content.sortable else "") + (" data-searchable" if content.searchable else "")
    name = html.escape(content.caption or "table")
    kind = "table-box many" if len(content.columns) > MANY_COLUMNS else "table-box"
    return Html(
        f'<div class="{kind}"{flags}><div class=table-scroll role=region tabindex=0 aria-label="{name}">'
        f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></div>"
    )


def picture_from_png(content: bytes | Path, alt: str) -> Html:
    """An existing PNG file as markup that holds it."""
    data = content.read_bytes() if isinstance(content, Path) else content
    encoded = base64.b64encode(data).decode("ascii")
    return Html(f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{encoded}">')


def render_page(page: Page) -> str:
    """The page as one HTML document; the same page gives the same text.

    Raises:
        ValueError: something in it would be loaded from elsewhere.
    """
    anchors = _anchors([section.title for section in page.sections])
    entries = zip(anchors, page.sections, strict=True)
    contents = "".join(f'<li><a href="#{anchor}">{markup(section.title)}</a></li>' for anchor, section in entries)
    sections = "".join(_section(a, s) for a, s in zip(anchors, page.sections, strict=True))
    navigation = f"<nav aria-label=Contents><ol>{contents}</ol></nav>" if len(page.sections) > 1 else ""
    subtitle = f"<p class=subtitle>{markup(page.subtitle)}</p>" if page.subtitle else ""
    footer = f"<footer>{markup(page.footer)}</footer>" if page.footer else ""
    body = f"<header><h1>{markup(page.title)}</h1>{subtitle}</header>{navigation}<main>{''.join(page.lead)}{sections}"
    _require_self_contained(body + footer)
    body = sharing_pictures(body)
    return "\n".join([_head(page), f"<body>{body}</main>{footer}", f"<script>{_asset('page.js')}</script>", "</html>"])


def write_page(path: Path, page: Page) -> Path:
    """Write the page, so that a reader finds the old or the new one and never half of it; returns the path.

    Raises:
        ValueError: something in the page would be loaded from elsewhere.
        UsdError: the file cannot be written.
    """
    text = render_page(page)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


def sharing_pictures(body: str) -> Html:
    """Let figures that hold the same picture, such as one slice under several outlines, hold it once.

    Its name is made of its content: parts of a page that were shared alone, or on another day, mix with others.
    """
    found: set[str] = set()

    def once(match: re.Match[str]) -> str:
        element = match[0]
        name = f"picture-{text_hash(element)}"
        if name in found:
            return f'<use xlink:href="#{name}"/>'
        found.add(name)
        return f'<image id="{name}"{element.removeprefix("<image")}'

    return Html(re.sub(r'<image xlink:href="data:[^"]*"[^>]*/>', once, body))


def format_number(value: float | int | None, digits: int = 3) -> str:
    """A number as tables show it: a dash where it is undefined; whole numbers without decimals."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return UNDEFINED
    if isinstance(value, float):
        text = f"{value:.{digits}f}"
        return text.replace("-", "\N{MINUS SIGN}") if float(text) else text.lstrip("-")
    return f"{value}".replace("-", "\N{MINUS SIGN}")


def _head(page: Page) -> str:
    script = base64.b64encode(hashlib.sha256(_asset("page.js").encode("utf-8")).digest()).decode("ascii")
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{script}'; base-uri 'none'; form-action 'none'"
    )
    refresh = f'<meta http-equiv="refresh" content="{page.refresh_s}">' if page.refresh_s else ""
    return (
        f'<!doctype html>\n<html lang=en>\n<head><meta charset=utf-8><meta http-equiv="Content-Security-Policy" '
        f'content="{policy}"><meta name=viewport content="width=device-width, initial-scale=1">'
        f'<meta name=color-scheme content="light dark">{refresh}<link rel=icon href="data:,">'
        f"<title>{html.escape(page.title)}</title>\n<style>{_asset('page.css')}</style></head>"
    )


@functools.cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _section(anchor: str, section: Section) -> str:
    intro = f"<p class=intro>{markup(section.intro)}</p>" if section.intro else ""
    return f"<section id={anchor}><h2>{markup(section.title)}</h2>{intro}{''.join(section.body)}</section>"


def _anchors(titles: Sequence[str]) -> list[str]:
    """One name a section that can stand in an address; equal titles are told apart by a number."""
    anchors: list[str] = []
    for title in titles:
        base = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        number = sum(1 for other in anchors if re.fullmatch(rf"{base}(-\d+)?", other))
        anchors.append(f"{base}-{number + 1}" if number else base)
    return anchors


def _heading(column: Column) -> str:
    hint = f' title="{html.escape(column.hint)}"' if column.hint else ""
    return f"<th scope=col class={column.kind}{hint}>{markup(column.title)}</th>"


def _cell(cell: Cell, column: Column) -> str:
    if isinstance(cell, Shown):
        text, value = str(markup(cell.text)), cell.value
    elif isinstance(cell, str):
        return f"<td class={column.kind}>{_breakable(markup(cell))}</td>"
    else:
        text, value = format_number(cell, column.digits), cell
    undefined = value is None or not math.isfinite(value)
    key = "" if undefined else f' data-value="{value!r}"'
    return f'<td class="{column.kind}{" undefined" if undefined else ""}"{key}>{text}</td>'


def _breakable(text: Html) -> str:
    """Let long names, such as those of cases and of fields, be wrapped between their parts."""
    return text if "<" in text else Html(re.sub(r"((?<=\w)_|(?<=[^\W\d_])\.)(?=\w)", r"\1<wbr>", text))


def _require_self_contained(body: str) -> None:
    addresses = _Addresses()
    addresses.feed(body)
    addresses.close()
    if addresses.external:
        raise ValueError(f"the page refers to {addresses.external[0][:80]!r}; pages must hold everything themselves")


class _Addresses(HTMLParser):
    """External addresses in a page's attributes and styles. Its text may say anything: a browser does not follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.external: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        for name, value in attrs:
            if value is None:
                continue
            if name in _ADDRESSES:
                self.external += [word for word in value.split() if _EXTERNAL.match(word)]
            elif name in _STYLES:
                self.external += _IN_STYLES.findall(value)

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.external += _IN_STYLES.findall(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False
