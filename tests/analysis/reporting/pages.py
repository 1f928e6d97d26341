"""broadopt-report in this process, and its page as a strict reader sees it."""

import contextlib
import io
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

from broadopt import report

VOID = {"meta", "input", "img", "rect", "line", "polyline", "polygon"}
"""Elements without an end here; those of a drawing end with />."""


def run(*arguments: object, cwd: Path, expect: int = 0) -> str:
    """stderr of `broadopt-report ARGUMENTS` in the folder `cwd`; nothing goes to stdout."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["broadopt-report", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            report.main()
    assert ended.value.code == expect, err.getvalue()
    assert out.getvalue() == ""
    return err.getvalue()


@dataclass
class Element:
    """An element with all the text in it."""

    tag: str
    attributes: dict[str, str]
    text: str = ""
    inside: list["Element"] = field(default_factory=list)

    def all(self, *tags: str) -> list["Element"]:
        """The elements of these tags below this one, in order."""
        found = []
        for child in self.inside:
            found += [child] if child.tag in tags else []
            found += child.all(*tags)
        return found

    def one(self, tag: str) -> "Element":
        """The only one."""
        (found,) = self.all(tag)
        return found


class Page(HTMLParser):
    """A page of which every element is closed, in order."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(content)
        self.close()
        assert [element.tag for element in self._open] == [""]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in <{tag}>"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].inside.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open[-1].tag == tag, f"</{tag}> where <{self._open[-1].tag}> is open"
            self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def table(self, name: str) -> list[list[str]]:
        """Header and rows of the table of this id, the cells as text."""
        (found,) = [element for element in self.root.all("table") if element.attributes["id"] == name]
        return [[cell.text for cell in row.all("th", "td")] for row in found.all("tr")]

    def section(self, title: str) -> Element:
        """The innermost section below a heading."""
        return [one for one in self.root.all("section") if one.all("h2", "h3")[0].text == title][-1]


def page(path: Path) -> Page:
    """A page that was written."""
    return Page(path.read_text(encoding="utf-8"))
