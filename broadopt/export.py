"""broadopt-export: the runs of a results folder into an experiment tracker, from their files alone."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from broadopt.signals import Stop, loading

with loading():
    from broadopt import streams
    from broadopt.analysis.tables.options import one_of
    from broadopt.analysis.tables.request import Completion, Parser
    from broadopt.config.rules import RULES, expanded
    from broadopt.errors import InputError, Interrupted, RunFailed, printable
    from broadopt.runs.folders import located, remark
    from broadopt.trackers.choose import check_installed, failure, opened
    from broadopt.trackers.record import TrackedRun, points_of, record
    from broadopt.trackers.stored import StoredRun, stored_runs

TRACKERS = tuple(name for name in RULES["tracker"].names if name != "none")

HELP = """\
Finished, interrupted, failed and running runs are sent, by their history.csv and result.json. A tracker that has a run
already, from tracker=... or an earlier export, is sent only what it lacks: the same command twice is the same as once.

where the runs go:
  tensorboard   FOLDER/tensorboard
  wandb         as WANDB_MODE, WANDB_PROJECT, ... and the login say; offline runs lie in FOLDER/wandb for `wandb sync`
  mlflow        MLFLOW_TRACKING_URI, else FOLDER/mlflow.db (mlflow server --backend-store-uri sqlite:///FOLDER/mlflow.db)
  trackio       TRACKIO_DIR, else FOLDER/trackio

tab completion:  eval "$(broadopt-export --completion bash)"   (or zsh; broadopt-export --completion fish | source)

exit codes: 0 all sent; 1 the tracker failed; 2 bad usage or input; 75 interrupted: the same command goes on
"""


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    tracker: str
    results: Path
    output: Path


@streams.ended_by_ctrl_c()
def main() -> None:
    """Entry point of broadopt-export; ends the process with the exit code of the contract."""
    streams.prepare()
    try:
        with streams.complete_output("broadopt-export", closed_pipe=0), Stop():
            export(parse(sys.argv[1:]))
    except Interrupted as signal:
        _leave(f"stopped by {signal}: run the same command to go on", 75)
    except InputError as error:
        _leave(str(error), 2)
    except RunFailed as error:
        _leave(str(error), 1)


def _leave(line: str, code: int) -> None:
    print(f"broadopt-export: {printable(line)}", file=sys.stderr)
    sys.exit(code)


def parse(arguments: Sequence[str]) -> Request:
    """The command line, checked. Raises InputError."""
    parser = Parser(
        prog="broadopt-export",
        description="Sends the runs of a results folder to an experiment tracker.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("tracker", metavar="TRACKER", help=", ".join(TRACKERS))
    parser.add_argument(
        "results",
        metavar="RESULTS",
        nargs="?",
        default="results",
        help="the folder with runs/ (default: results)",
    )
    parser.add_argument("--output", metavar="FOLDER", help="where what is local goes (default: RESULTS)")
    parser.add_argument("--completion", action=Completion, words=TRACKERS, files=("--output",))
    given = parser.parse_args(arguments)
    one_of("tracker", given.tracker, TRACKERS)
    asked = Path(expanded(given.results, "RESULTS"))
    if not (asked / "runs").is_dir() and (asked / "config.yaml").exists():
        raise InputError(f"{asked}: that is the folder of a run; expected the results folder, which holds runs/")
    results = located(asked, option="")
    for line in remark(asked, results):
        print(f"broadopt-export: {line}", file=sys.stderr)
    output = Path(expanded(given.output, "--output")) if given.output else results
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output}: expected a folder, found a file")
    return Request(given.tracker, results, output)


def export(request: Request) -> None:
    """Send the runs, and say how many there were. Raises InputError where the tracker is not installed or cannot lie
    in the folder, RunFailed where it fails.
    """
    check_installed([request.tracker])
    runs, left_out = stored_runs(request.results)
    states: Counter[str] = Counter()
    for run in runs:
        if run.state == "running" and has_offline_files(run, request):
            name = TrackedRun.of(run.config).name
            left_out.append(f"{name}: it is running, and W&B cannot go on with its offline files; export it later")
            continue
        try:
            send(run, request.tracker, request.output)
        except InputError:
            raise
        except Exception as error:  # a tracker may raise anything
            name = TrackedRun.of(run.config).name
            raise RunFailed(f"{request.tracker}: {name} could not be sent: {failure(error)}") from error
        states[run.state] += 1
    for line in left_out:
        print(f"broadopt-export: left out: {printable(line)}", file=sys.stderr)
    count, parts = states.total(), ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    print(f"{request.tracker}: {count} run{'s' * (count != 1)}" + f" ({parts})" * bool(parts))


def has_offline_files(run: StoredRun, request: Request) -> bool:
    """Whether W&B's files of an offline run are there, which a new one of it would replace."""
    if request.tracker != "wandb":
        return False
    from broadopt.trackers.wandb_run import home, offline_folders

    return bool(offline_folders(TrackedRun.of(run.config), home(request.output)))


def send(run: StoredRun, tracker: str, place: Path) -> None:
    """Make what a tracker has of a run what its files say. Raises whatever the tracker raises."""
    writer = opened(tracker, TrackedRun.of(run.config), place)
    record(writer, points_of(run.history, run.metrics), complete=run.state == "finished")
    writer.finish(run.state)


if __name__ == "__main__":
    main()
