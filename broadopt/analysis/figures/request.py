"""What the command line of broadopt-figure asks for."""

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadopt.analysis.figures.catalogue import FIGURES, MEASURED, TRAIN_IMAGES, Entry, options_of
from broadopt.analysis.landscape.runs import Run, chosen
from broadopt.analysis.tables.options import one_of
from broadopt.analysis.tables.request import Completion, Parser, long_options
from broadopt.config.rules import expanded
from broadopt.errors import InputError, nearest

if TYPE_CHECKING:
    import torch

__all__ = ["Request", "Run", "parse"]  # Run belongs to a request as well

FORMATS = ("png", "svg", "pdf")
DEFAULT_FORMATS = ("png", "svg")
HELP = """\
RUN is the folder of a run, or words KEY=VALUE[,VALUE] that select finished runs below --results, in the order of the
values:
  broadopt-figure line method=sgd,swa model=resnet20 seed=1
A network of your own is built with trust=MODULE beside them, the module that its code is in.

A figure is written as OUTPUT.png and OUTPUT.svg, its numbers as OUTPUT.csv, and one line says what is seen.

tab completion:  eval "$(broadopt-figure --completion bash)"   (or zsh; broadopt-figure --completion fish | source)

exit codes: 0 drawn; 1 a measurement failed; 2 bad usage or input; 75 interrupted: the same command
goes on (plane, rays, line, spectrum, sharpness, normalisation) or begins anew
"""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks for."""

    figure: str
    runs: tuple[Run, ...]
    options: argparse.Namespace
    """All options as argparse has them, those of the figure alone among them."""
    output: Path
    """Without a suffix."""
    formats: tuple[str, ...] = DEFAULT_FORMATS
    style: Path | None = None
    device_name: str = "auto"
    data_dir: str | None = None
    """Where CIFAR lies; None: where each run read it."""
    images: int | None = None
    """Test images; None: all."""
    train_images: int = TRAIN_IMAGES
    """Training images for the loss and for BN."""
    seed: int = 1
    caption: bool = True
    """Whether the caption stands in the picture, and not in the CSV alone."""

    @property
    def device(self) -> "torch.device":
        """Where it is computed. Raises InputError for a GPU that is not there."""
        from broadopt.devices.device import choose_device

        return choose_device(self.device_name)


def parse(arguments: Sequence[str]) -> Request:
    """The command line, checked; its runs are read. Raises InputError."""
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if name is None:
        _parser(None).parse_known_args(arguments)  # --help and --completion end the process
        raise InputError(
            f"expected a figure ahead of all else, one of {', '.join(FIGURES)}; see broadopt-figure --help"
        )
    if name not in FIGURES:
        hint = nearest(name, FIGURES)
        raise InputError(f'figure "{name}" is none of {", ".join(FIGURES)}{hint}')
    entry = FIGURES[name]
    _check_read(arguments[1:], entry)
    given = _parser(entry).parse_intermixed_args(arguments[1:])
    return Request(
        figure=name,
        runs=_runs(entry, given),
        options=given,
        output=_output(given.output, name),
        formats=_formats(given.format, given.output),
        style=Path(expanded(given.style, "--style")) if given.style else None,
        device_name=_device(given.device),
        data_dir=expanded(given.data_dir, "--data-dir") if given.data_dir else os.environ.get("BROADOPT_DATA"),
        images=given.images,
        train_images=given.train_images,
        seed=given.seed,
        caption=not given.no_caption,
    )


def _check_read(words: Sequence[str], entry: Entry) -> None:
    """Raise InputError for an option of other figures that would change nothing in this one."""
    for option in (word.partition("=")[0] for word in words):
        if option in MEASURED and option not in entry.reads:
            raise InputError(f"{option}: {entry.name} does not read it; see broadopt-figure {entry.name} --help")


def whole_number(least: int, most: int = 10**9) -> Any:
    """An argparse type: a whole number from `least` to `most`."""

    def number(text: str) -> int:
        if not re.fullmatch(r"\d{1,18}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number from {least} to {most}")
        return int(text)

    return number


def number_above(least: float, *, inclusive: bool = False) -> Any:
    """An argparse type: a finite number > `least`, or >= where `inclusive`."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (value > least or (inclusive and value == least)) or value == float("inf"):
            sign = ">=" if inclusive else ">"
            raise argparse.ArgumentTypeError(f"{text}: expected a number {sign} {least:g}")
        return value

    return number


def _parser(entry: Entry | None) -> Parser:
    listed = "\n".join(f"  {one.name:<13} {one.shows} ({one.source})" for one in FIGURES.values())
    parser = Parser(
        prog=f"broadopt-figure {entry.name}" if entry else "broadopt-figure",
        usage=None
        if entry
        else "broadopt-figure FIGURE [RUN ...] [options]    (options: broadopt-figure FIGURE --help)",
        description=f"{entry.shows} ({entry.source})." if entry else "Figures of finished runs, with their numbers.",
        epilog=HELP if entry else f"figures:\n{listed}\n\n{HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_completion(parser)
    if entry is not None:
        _add_options(parser, takes_runs=entry.most != 0, reads=entry.reads, train_images=entry.train_images)
        own = options_of(entry)
        if own is not None:
            own(parser.add_argument_group(f"of {entry.name} alone"))  # type: ignore[arg-type]  # it adds arguments too
    return parser


def _add_options(
    parser: Parser, *, takes_runs: bool, reads: Sequence[str] = MEASURED, train_images: int = TRAIN_IMAGES
) -> None:
    add = parser.add_argument
    add("run", metavar="RUN", nargs="*", help="a run folder, or KEY=VALUE[,VALUE]" if takes_runs else argparse.SUPPRESS)
    add("--results", metavar="DIR", action="append", help="the folder that holds runs/ (default: results); repeatable")
    add("-o", "--output", metavar="PATH", default="", help="a file with or without suffix, or a folder (default: here)")
    add("--format", metavar="FORMAT[,FORMAT]", help="png,svg (default), pdf")
    add("--style", metavar="FILE", help="a matplotlib style file, laid over broadopt's own")
    add("--no-caption", action="store_true", help="the caption in the CSV alone, as for a paper")
    parser.set_defaults(device="auto", data_dir=None, images=None, train_images=train_images, seed=1)
    measured: dict[str, dict[str, Any]] = {
        "--device": {"metavar": "DEVICE", "help": "auto, cpu, cuda or cuda:N"},
        "--data-dir": {"metavar": "DIR",
                       "help": "where CIFAR lies (default: BROADOPT_DATA, else where the run read it)"},
        "--images": {"type": whole_number(1), "metavar": "N", "help": "test images (default: all)"},
        "--train-images": {"type": whole_number(2), "metavar": "N",
                           "help": f"training images for the loss and for BN (default: {train_images})"},
        "--seed": {"type": whole_number(0, 2**63 - 1), "metavar": "K", "help": "of every draw (default: 1)"},
    }  # fmt: skip
    for option in reads:
        add(option, **measured[option])


def _add_completion(parser: Parser) -> None:
    """Completion offers the options of all figures, whichever is named."""
    every = Parser(add_help=False)
    _add_options(every, takes_runs=True)
    parser.add_argument(
        "--completion",
        action=Completion,
        words=tuple(FIGURES),
        options=[*long_options(every), "--completion", "--help"],
        known={"--format": FORMATS, "--device": ("auto", "cpu", "cuda")},
        files=("--results", "--output", "--style", "--data-dir"),
    )


def _runs(entry: Entry, given: argparse.Namespace) -> tuple[Run, ...]:
    if entry.most == 0 and given.run:
        raise InputError(f"{given.run[0]}: {entry.name} is drawn without runs; expected options alone")
    if not given.run and entry.fewest:
        raise InputError(
            f"{entry.name} needs {_count(entry)}: name run folders, or select them as method=sgd,swa seed=1"
        )
    roots = [Path(expanded(folder, "--results")) for folder in given.results or ["results"]]
    trusted = [word.partition("=")[2] for word in given.run if word.startswith("trust=")]
    words = [word for word in given.run if not word.startswith("trust=")]
    runs = chosen(words, roots, unfinished=entry.unfinished, trust=trusted)
    if not entry.fewest <= len(runs) <= (len(runs) if entry.most is None else entry.most):
        found = f"; found {len(runs)}: {', '.join(str(run.folder) for run in runs[:6])}" + ", ..." * (len(runs) > 6)
        raise InputError(f"{entry.name} needs {_count(entry)}{found}")
    return runs


def _count(entry: Entry) -> str:
    if entry.most is None:
        return f"{entry.fewest} or more {entry.needs}"
    return (
        f"{entry.fewest} {entry.needs}"
        if entry.fewest == entry.most
        else f"{entry.fewest} to {entry.most} {entry.needs}"
    )


def _output(text: str, name: str) -> Path:
    path = Path(expanded(text, "--output")) if text else Path(name)
    if text and (text.endswith("/") or path.is_dir()):
        return path / name
    return path.with_suffix("") if path.suffix.lower()[1:] in (*FORMATS, "csv") else path


def _formats(text: str | None, output: str) -> tuple[str, ...]:
    suffix = Path(output).suffix.lower()[1:]
    if text is None:
        return (suffix,) if suffix in FORMATS else DEFAULT_FORMATS
    found = tuple(dict.fromkeys(part for part in text.split(",") if part))
    for part in found or ("",):
        one_of("--format", part, FORMATS)
    return found


def _device(name: str) -> str:
    if name not in ("auto", "cpu", "cuda") and not re.fullmatch(r"cuda:\d{1,3}", name):
        raise InputError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    return name
