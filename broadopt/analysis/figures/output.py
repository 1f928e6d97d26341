"""A finished drawing as files: pictures in one look, the numbers behind them as CSV; each file is whole or absent."""

import io
import logging
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas

from broadopt.analysis.figures.request import Request
from broadopt.analysis.landscape.runs import Run
from broadopt.analysis.landscape.store import KEY, partial
from broadopt.errors import InputError, printable
from broadopt.files import write_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("broadopt.mplstyle")

CAPTION_SIZE = 5.0
"""Points."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure, and all that is said of it."""

    figure: "Figure"
    """In constrained layout; its supxlabel is left free for the caption."""
    rows: pandas.DataFrame
    """The numbers behind it, one row a point."""
    caption: str
    """What is measured on what: split, images, BN policy, precision, seeds."""
    seen: str
    """The one line: what is seen, with its uncertainty."""
    key: str = ""
    """Of a measurement whose rows a Store keeps: the CSV has it, so that the figure can be drawn again at once."""


def seeds(runs: Sequence[Run], figure: int | None = None) -> str:
    """What a caption says of the seeds of the runs, and of that of the figure's own draws where it makes any."""
    own = ", ".join(map(str, sorted({run.recipe.seed for run in runs})))
    return f"seed of the runs {own}" + ("" if figure is None else f", of the figure {figure}")


@contextmanager
def rendering() -> Iterator[None]:
    """Inside, what matplotlib cannot set (a style without its LaTeX, an image without end) raises InputError."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        words = printable(" ".join(str(error).split())[:300])
        raise InputError(f"the figure cannot be rendered: {words}; another --style may help") from error


@contextmanager
def styled(own: Path | None) -> Iterator[None]:
    """Inside, matplotlib draws into memory in broadopt's look, with a style file of the user's laid over it. Raises
    InputError where that cannot be used.
    """
    import matplotlib
    from matplotlib import style

    matplotlib.use("Agg")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever a matplotlibrc of this user says: the same figure everywhere
        matplotlib.use("Agg")
        style.use(str(STYLE))
        if own is not None:
            _lay_over(own)
        yield


class _Heard(logging.Handler):
    """Keeps what matplotlib only logs: a key that it does not know."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(" ".join(record.getMessage().split()))


def _lay_over(own: Path) -> None:
    import matplotlib
    from matplotlib import style

    if not own.is_file():
        raise InputError(f"--style {own}: expected a matplotlib style file; there is no such file")
    heard, logger = _Heard(), logging.getLogger("matplotlib")
    logger.addHandler(heard)
    try:
        values = matplotlib.rc_params_from_file(own, fail_on_error=True, use_default_template=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"--style {own}: {printable(' '.join(str(error).split())[:200])}") from error
    finally:
        logger.removeHandler(heard)
    if heard.lines:
        raise InputError(f"--style {own}: {printable(heard.lines[0][:200])}")
    style.use({str(key): value for key, value in values.items()})


def write(drawing: Drawing, request: Request) -> list[Path]:
    """Write the CSV and the pictures of a drawing, all rendered before the first is written. Returns their paths.
    Raises InputError where one cannot be written.
    """
    contents = {"csv": csv_of(drawing, request).encode()}
    with rendering():
        if request.caption:
            _put_caption(drawing)
        contents |= {kind: _rendered(drawing, kind) for kind in request.formats}
    paths = []
    for kind, content in contents.items():
        path = request.output.with_name(f"{request.output.name}.{kind}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_output(path, content)
        except (OSError, ValueError) as error:  # ValueError: a path with a null byte
            raise InputError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from error
        paths.append(path)
    if drawing.key:
        partial(request.output).unlink(missing_ok=True)
    return paths


def csv_of(drawing: Drawing, request: Request) -> str:
    """The rows as CSV below lines of `# ...`: figure, runs, what is measured and what is seen."""
    lines = [f"broadopt-figure {request.figure}"]
    lines += [f"run {run.label}: {run.folder} ({run.result['identity'][:8]})" for run in request.runs]
    lines += [drawing.caption, drawing.seen, *([f"{KEY}{drawing.key}"] if drawing.key else [])]
    head = "".join(f"# {printable(line)}\n" for line in lines)
    return head + drawing.rows.to_csv(index=False, lineterminator="\n")


def _put_caption(drawing: Drawing) -> None:
    """Write the caption below the axes; the figure grows by its lines, so that the axes keep their size."""
    figure = drawing.figure
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(drawing.caption, width=max(40, int(width * 72 / (0.55 * CAPTION_SIZE))))
    figure.set_size_inches(width, height + (len(lines) + 0.5) * 1.3 * CAPTION_SIZE / 72)
    form: dict[str, Any] = {"fontsize": CAPTION_SIZE, "color": "0.35", "x": 0.01, "ha": "left", "linespacing": 1.3}
    figure.supxlabel("\n".join(lines), parse_math=False, **form)  # names may hold $


def _rendered(drawing: Drawing, kind: str) -> bytes:
    """The picture as bytes, the same for the same drawing: without the time, and with fixed names in SVG."""
    described = {"png": {"Description": drawing.caption, "Software": "broadopt"}}
    described |= {"svg": {"Description": drawing.caption, "Date": None, "Creator": "broadopt"}}  # type: ignore[dict-item]
    described |= {"pdf": {"Subject": drawing.caption, "CreationDate": None, "Creator": "broadopt"}}  # type: ignore[dict-item]
    content = io.BytesIO()
    drawing.figure.savefig(content, format=kind, metadata=described[kind])
    return content.getvalue()
