"""What committed files measure, for the lines of documents that quote it."""

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from documents import CHECKOUT, text


@dataclass(frozen=True)
class Line:
    """A line of a page."""

    page: str
    begins: str
    held: tuple[str, ...]
    """Its words, with the figures that committed files give."""
    unheld: tuple[str, ...] = ()
    """Those with figures that no file holds: settings, what was hoped for, what was not kept."""


@cache
def rows(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(text(f"results/benchmark/{name}.json"))["rows"]
    return found


def ratio(name: str, what: str) -> float:
    (found,) = [row["ratio"] for row in rows(name) if row["what"] == what]
    return float(found)


@cache
def results(folder: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((CHECKOUT / "results" / folder).rglob("result.json"))]


def rated(name: str, network: str, variant: str = "as auto chooses") -> dict[str, Any]:
    (found,) = [row for row in rows(name) if row.get("network") == network and row.get("variant") == variant]
    return found


def speed(name: str, network: str) -> str:
    return f"{rated(name, network)['sgd, images/s']:,.0f}"


def gain(name: str, network: str) -> float:
    """What recorded steps are to plain ones."""
    recorded, plain = (rated(name, network, one)["sgd, images/s"] for one in ("as auto chooses", "plain steps"))
    return float(recorded / plain)


def passed(name: str, outcome: str = "yes") -> int:
    return sum(row.get("passed") == outcome for row in rows(name))


def together(name: str, runs: int) -> float:
    (found,) = [row["images/s in all"] for row in rows(name) if row["part"] == "together" and row["runs"] == runs]
    return float(found)


def ascents(name: str, method: str) -> list[float]:
    return [row[f"{method} / sgd, seconds"] for row in rows(name) if row["part"] == "ascent"]


def options(name: str) -> dict[str, str]:
    """Those of the command that made a file."""
    command = json.loads(text(f"results/benchmark/{name}.json"))["command"]
    return dict(re.findall(r"--([a-z]+) (\d+)", command))
