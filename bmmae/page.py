"""What every report is made of: HTML that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1180px; padding: 0 1em; color: #1c2430;
background: #fff }
h1 { font-size: 1.5em } h2 { font-size: 1.1em; margin: 0 0 .3em } table { border-collapse: collapse; margin: .5em 0;
font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .15em .9em .15em 0; vertical-align: top } th { color: #5a6677; font-weight: 600 }
.error { color: #b3141d; font-weight: 600 } .warning { color: #9a5b00; font-weight: 600 } .fine { color: #1c7a3d }
.study { border: 1px solid #d6dce5; border-radius: 6px; padding: .8em 1em; margin: 1em 0 }
.planes { display: flex; flex-wrap: wrap; gap: 8px } figure { margin: 0; background: #000; border-radius: 4px }
figcaption { color: #dfe6ef; padding: 2px 6px; font-size: 12px } img { display: block; max-width: 100%; height: auto }
.key span { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 .8em; border-radius: 2px }
"""


def document(title: str, body: Iterable[str], style: str = "") -> str:
    """Return a whole page.

    Args:
        title: Plain text.
        body: HTML, a part each.
        style: Further rules.
    """
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
    return "\n".join((head, f"<style>{STYLE}{style}</style>", *body)) + "\n"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table of cells that are HTML already."""
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>" + "\n".join(lines) + "</table>"


def figure(png: bytes, alt: str, caption: str) -> str:
    """Return a picture that the page carries within itself.

    Args:
        png: A PNG file.
        alt: What it shows, for those who cannot see it; plain text.
        caption: Plain text.
    """
    source = base64.b64encode(png).decode()
    picture = f'<img alt="{escape(alt)}" src="data:image/png;base64,{source}">'
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"
