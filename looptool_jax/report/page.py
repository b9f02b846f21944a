"""One self-contained HTML page: its shell, its sections, and tables in it. Whatever text comes in stays text.

The page asks nothing of the network: its content security policy allows the style and the scripts that it carries, by
their hashes, and nothing else. It needs no script to be read.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from looptool_jax.loop.console import shown
from looptool_jax.report.tables import Table

_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")  # turn the reading order of what follows


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading of its own. id: its anchor. html: markup, all text in it escaped."""

    id: str
    title: str
    html: str


@dataclass(frozen=True)
class Figure:
    """A number that one looks for first: its name, the number, and what to read it with."""

    name: str
    value: str
    note: str = ""


def text(value: str) -> str:
    """Any string as text of the page, in an element or in a quoted attribute.

    Control characters, lone surrogates and controls of the reading direction are written out (`\\u202e`).
    """
    return escape(_BIDI.sub(lambda found: f"\\u{ord(found[0]):04x}", shown(value)))


def page(title: str, subtitle: str, sections: Sequence[Section], script: str = "", body_end: str = "") -> str:
    """The whole document. script: JavaScript that the page may run; body_end: markup behind all sections."""
    style = resource("style.css")
    scripts = f"<script>{script}</script>" if script else ""
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src {_quoted(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    links = "".join(f'<li><a href="#{text(part.id)}">{text(part.title)}</a></li>' for part in sections)
    main = "\n".join(_section(part) for part in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{text(title)}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header><h1>{text(title)}</h1><p class="note">{text(subtitle)}</p></header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main id="main" tabindex="-1">
{main}
</main>
{body_end}{scripts}
</body>
</html>
"""


def table(content: Table) -> str:
    """A table with its title as caption, its first column as the heads of the rows, and its note below."""
    head = "".join(f'<th scope="col">{text(column)}</th>' for column in content.columns)
    rows = "".join(f"<tr>{_row(cells)}</tr>" for cells in content.rows)
    note = f'<p class="note">{text(content.note)}</p>' if content.note else ""
    return (
        f'<div class="scroll"><table><caption>{text(content.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}"
    )


def figures(items: Sequence[Figure]) -> str:
    """Numbers side by side, each with its name and a note."""
    cells = "".join(
        f"<div><dt>{text(item.name)}</dt>"
        f'<dd><b>{text(item.value)}</b><span class="note">{text(item.note)}</span></dd></div>'
        for item in items
    )
    return f'<dl class="figures">{cells}</dl>'


def resource(name: str) -> str:
    """A text file that lies beside this one."""
    return (files(__name__.rpartition(".")[0]) / name).read_text(encoding="utf-8")


def _section(part: Section) -> str:
    here = text(part.id)
    head = f'<h2 id="{here}-title">{text(part.title)}</h2>'
    return f'<section id="{here}" aria-labelledby="{here}-title">{head}{part.html}</section>'


def _row(cells: Sequence[str]) -> str:
    first, *others = cells
    return f'<th scope="row">{text(first)}</th>' + "".join(f"<td>{text(cell)}</td>" for cell in others)


def _quoted(script: str) -> str:
    return f"'{_hash(script)}'" if script else "'none'"


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
