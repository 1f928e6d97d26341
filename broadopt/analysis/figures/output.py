"""A finished drawing as files: pictures in one look, the numbers behind them as CSV; each file is whole or absent."""

import io
import logging
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas

from broadopt.analysis.figures.request import Request
from broadopt.analysis.landscape.runs import Run
from broadopt.analysis.landscape.store import KEY, partial
from broadopt.errors import InputError, printable
from broadopt.files import write_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("broadopt.mplstyle")

# Okabe and Ito's colours, which every common kind of colour vision tells apart; lines and markers do so in grey.
COLOURS = {"sgd": "#000000", "swa": "#0072B2", "fge": "#009E73", "sam": "#D55E00", "asam": "#CC79A7"}
MARKERS = {"sgd": "o", "swa": "s", "fge": "^", "sam": "D", "asam": "v"}
LINES = {"sgd": "-", "swa": "-", "fge": "--", "sam": "-.", "asam": ":"}
OTHERS = ("#56B4E9", "#E69F00", "#999999")
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
"""Of lines of the same method."""

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


def look(method: str, number: int = 0) -> dict[str, Any]:
    """Colour, marker and line of a method, the same in every figure: keyword arguments of matplotlib's `plot`. A
    composition (`sam+swa`) has those of its collector; `number` chooses among those for methods that are not known.
    """
    known = [part for part in reversed(method.split("+")) if part in COLOURS]
    if not known:
        return {"color": OTHERS[number % len(OTHERS)], "marker": "X", "linestyle": (0, (3, 1, 1, 1, 1, 1))}
    return {"color": COLOURS[known[0]], "marker": MARKERS[known[0]], "linestyle": LINES[known[0]]}


def styles(methods: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The look of each line, by its name, from its method; lines of the same method differ in their dashes."""
    found, listed = {}, list(methods.values())
    for number, (name, method) in enumerate(methods.items()):
        found[name] = look(method, number)
        if listed.count(method) > 1:
            found[name]["linestyle"] = DASHES[listed[:number].count(method) % len(DASHES)]
    return found


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


LABEL_SIZE = 5.5
"""Points."""

RIGHT_EDGE = 0.93
"""Share of the axes' width from which on an end lies at its right edge."""

MOST_LABELS = 7
"""Lines that are named at their ends."""


@dataclass(frozen=True)
class End:
    """Where a line ends, in the data's units, what it is called there, and the line itself."""

    x: float
    y: float
    text: str
    artist: Any
    """A line, or a container of one with its error bars."""
    colour: str


def name_lines(axes: "Axes", ends: Sequence[End]) -> None:
    """Name the lines of `axes`, the uppermost of its figure, whose limits have to be final. Raises InputError."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    with rendering():
        figure.draw_without_rendering()  # the layout decides where on the page the ends lie
    at = [axes.transAxes.inverted().transform(axes.transData.transform((end.x, end.y))) for end in ends]
    if len(ends) > MOST_LABELS or min(float(x) for x, _ in at) < RIGHT_EDGE:
        texts = [end.text.replace("\n", " ") for end in ends]
        columns = 1 if max(map(len, texts)) > 24 else 2 if max(map(len, texts)) > 9 else 5
        place_legend(figure, [end.artist for end in ends], texts, ncols=columns, fontsize=LABEL_SIZE)
        return
    height = axes.get_window_extent().height * 72 / figure.dpi
    lines = [1 + end.text.count("\n") for end in ends]
    places = spread([float(y) for _, y in at], [1.25 * LABEL_SIZE * count / height for count in lines])
    for end, (_, y), place in zip(ends, at, places, strict=True):
        axes.annotate(
            end.text,
            (1.0, float(y)),
            (1.04, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=LABEL_SIZE,
            color=end.colour,
            va="center",
            annotation_clip=False,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": end.colour, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 0},
        )


def place_legend(figure: "Figure", artists: Sequence[Any], names: Sequence[str], **options: Any) -> None:
    """A legend above the axes, its names as they are: they may hold $."""
    for text in figure.legend(artists, names, loc="outside upper left", **options).get_texts():
        text.set_parse_math(False)


def spread(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Places as near as possible to those `wanted`, in their order, each half of its own and its neighbour's size from
    the next: by least squares (pool adjacent violators).
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    offsets = np.concatenate([[0.0], np.cumsum([(sizes[a] + sizes[b]) / 2 for a, b in pairwise(order)])])
    # Without the room that those below take, each place only has to be no lower than the one before.
    blocks: list[list[float]] = []
    for index, offset in zip(order, offsets, strict=False):
        blocks.append([wanted[index] - offset])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    free = [float(np.mean(block)) for block in blocks for _ in block]
    found = dict(zip(order, (place + float(offset) for place, offset in zip(free, offsets, strict=False)), strict=True))
    return [found[index] for index in range(len(wanted))]
