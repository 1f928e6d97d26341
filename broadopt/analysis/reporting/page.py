"""Sections as one HTML file: style and script inside it, nothing loaded from elsewhere, every text escaped."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from broadopt.analysis.reporting import curves
from broadopt.analysis.reporting.parts import Section
from broadopt.errors import printable

FOLDER = Path(__file__).parent


def render(title: str, summary: Sequence[str], sections: Sequence[Section]) -> str:
    """The page; the same sections give the same text."""
    style, script = _own("page.css"), _own("page.js")
    # What the page itself brings is named by its hash, so that nothing else is ever run or loaded.
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    template = _environment().get_template("page.html.jinja")
    page = template.render(
        title=title, summary=summary, sections=sections, style=style, script=script, policy=policy, box=curves
    )
    return f"{page.strip()}\n"  # ahead of the page stand the macros, of which blank lines are left


def _own(name: str) -> Markup:
    """A file of broadopt's own, which goes into the page as it stands."""
    return Markup((FOLDER / name).read_text(encoding="utf-8"))


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode('ascii')}"


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _printable(value: Any) -> Any:
    """Names and reasons come from files that anyone may have written: no control character comes through."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
