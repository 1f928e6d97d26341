"""The rooms of broadopt/: imports go down the floors that docs/architecture.md draws, never in a circle."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import broadopt

PACKAGE = Path(broadopt.__file__).parent
FLOORS = (
    {"errors", "seeds"},
    {"signals", "files", "streams"},
    {"config"},
    {"completion"},
    {"data", "devices"},
    {"methods", "models"},
    {"runs"},
    {"predictor", "completion", "trackers"},
    {"snapshots"},
    {"training"},
    {"launchers", "tables"},
    {"comparing", "status"},
    {"reporting", "landscape"},
    {"figures"},
    {"run", "table", "report", "export", "figure"},
)
"""From the ground up; a room imports from itself and from the floors below, and so do those of analysis/.
"""

ROOMS = sorted(path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.glob("*/**/__init__.py"))
"""Folders that hold code, folders within folders too."""

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}


def imported(module: str, *, top_level: bool = False) -> set[str]:
    """The modules of broadopt that one imports, inside its functions too unless `top_level`."""
    tree = ast.parse(MODULES[module].read_text())
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "broadopt":
            place = (node.module or "").partition(".")[2]
            found |= {f"{place}.{alias.name}".strip(".") for alias in node.names} | {place}
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("broadopt.")}
    return {name for name in found if name in MODULES} - {module}


def room_of(module: str) -> str:
    return module.removeprefix("analysis.").split(".")[0]


def floor(module: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if room_of(module) in rooms)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module: str) -> None:
    for other in imported(module):
        assert room_of(other) == room_of(module) or floor(other) < floor(module), (
            f"{module} imports {other}, which stands no lower"
        )


def test_imports_make_no_circle() -> None:
    TopologicalSorter({module: imported(module, top_level=True) for module in MODULES}).prepare()


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_says_who_may_live_there(room: str) -> None:
    docstring = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
    assert docstring
    files = list((PACKAGE / room).glob("[!_]*.py"))
    assert 2 <= len(files) <= 10 or (room == "analysis" and not files)


def test_there_are_not_more_rooms_than_one_remembers() -> None:
    assert 7 <= sum("/" not in room for room in ROOMS) <= 10
    assert sum(room.startswith("analysis/") and room.count("/") == 1 for room in ROOMS) <= 10


def test_what_reads_results_does_not_import_torch() -> None:
    rooms = ("tables", "comparing", "status", "reporting", "table", "report", "runs", "trackers", "export", "figure")
    extras = [name for name in MODULES if name.endswith("_run") and name.startswith("trackers.")]
    modules = [name for name in MODULES if room_of(name) in rooms and name not in extras]
    modules += [f"analysis.{name}" for name in ("figures.catalogue", "figures.request", "figures.output")]
    modules += ["analysis.landscape.runs"]
    loaded = "'torch' in sys.modules or 'matplotlib' in sys.modules"
    program = f"import sys, {', '.join(f'broadopt.{name}' for name in modules)}; print({loaded})"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_matplotlib_is_imported_by_figures_alone() -> None:
    importing = {name for name, path in MODULES.items() if "matplotlib" in _roots(path)}
    assert {room_of(name) for name in importing} == {"figures"}


def _roots(path: Path) -> set[str]:
    """The packages that a module imports, wherever it does so."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}
