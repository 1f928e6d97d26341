"""broadopt-run: the command line, its runs one after the other, and what becomes of their failures."""

import gc
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from broadopt.signals import loading

with loading():
    import hydra

    from broadopt import __version__, launchers, streams
    from broadopt.completion import completion
    from broadopt.config.arguments import ignored_folders, is_sweep, prepared
    from broadopt.config.compose import register_resolvers
    from broadopt.config.messages import one_line
    from broadopt.config.shipped import config_dir
    from broadopt.devices.threads import let_waiting_threads_sleep
    from broadopt.errors import InputError, Interrupted, printable
    from broadopt.launchers.ended import in_a_sweep, is_first, is_shared, speaks
    from broadopt.launchers.place import PLACE
    from broadopt.launchers.session import Session, unforeseen
    from broadopt.runs.objective import Outcome, is_minimised

log = logging.getLogger("broadopt")


@streams.ended_by_ctrl_c()
def main() -> None:
    """The entry point of broadopt-run. Exit codes: 0 finished, 1 failed, 2 bad input, 3 left to another process, 75
    interrupted with the state saved.
    """
    streams.prepare()
    with streams.complete_output("broadopt-run", closed_pipe=75):
        _main()


def _main() -> None:
    level = logging.WARNING if is_first() else logging.ERROR
    logging.basicConfig(format="%(message)s", level=level, stream=sys.stderr)
    if not is_first():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    # Composing makes a million small objects that stay: to look through them at every 700 is a quarter of its time.
    gc.set_threshold(200_000, 20, 20)
    session = Session(full_error=os.environ.get("HYDRA_FULL_ERROR"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here whole and leave as one line
    let_waiting_threads_sleep()
    register_resolvers()
    try:
        with session.stop:
            try:
                command(session)
            finally:
                session.trackers.wait()
    except Interrupted as signal:
        leave(f"stopped by {signal}: run {_to_go_on(sys.argv[1:])} to go on", 75)
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - it is reported in a line, or raised once more
        if session.show_traces and not session.failed:
            traceback.print_exc()
        if not session.failed and not session.elsewhere:  # else a sweeper has given up because of them
            report(error, session)
    conclude(session)


def _to_go_on(arguments: Sequence[str]) -> str:
    """What goes on with an interrupted command. With force=true what has finished since would be trained once more."""
    is_forced = any(argument.lstrip("+").lower() == "force=true" for argument in arguments)
    return "the same command without force=true" if is_forced else "the same command"


def command(session: Session) -> None:
    """Carry out what the command line asks for."""
    if "--version" in sys.argv[1:]:
        return print(f"broadopt {__version__}")
    if any(argument.startswith("repeat=") for argument in sys.argv[1:]):
        return session.repeat(sys.argv[1:])
    sys.argv[1:] = prepared(sys.argv[1:])
    if (offered := completion(sys.argv[1:], os.environ.get("COMP_LINE", ""))) is not None:
        return print(offered)
    for line in ignored_folders(sys.argv[1:]):
        log.warning("%s", line)
    launchers.register(session)
    hydra.main(config_path=str(config_dir()), config_name="run", version_base="1.3")(session.task)()
    if session.runs == 0 and is_sweep(sys.argv[1:]):
        raise InputError("-m: the sweep has no runs; expected one value at least of each key")


def report(error: Exception, session: Session) -> None:
    """Leave with the line about an error that no run has raised; `error` itself where it is a mistake of broadopt's."""
    line = one_line(error, sys.argv[1:])
    if line is not None:
        leave(line, 2)
    if session.others:
        leave(f"{session.others}: {unforeseen(error)}", 2 if session.runs == 0 else 1)
    raise error


def leave(line: str, code: int) -> None:
    """Say one line on stderr and exit; of several processes the first speaks, the others of what is theirs alone."""
    if speaks(line) if code == 1 else is_first():
        print(f"broadopt-run: {line}", file=sys.stderr, flush=True)
    sys.exit(code)


def conclude(session: Session) -> None:
    """Sum a sweep up; exit where a run failed, naming it."""
    if len(session.planned) > 1:
        from broadopt.training.planning.page import summary

        print(summary(session.planned))
    if session.finished:
        show_sweep(session)
    if not session.failed and session.elsewhere:
        runs = "1 run is" if session.elsewhere == 1 else f"{session.elsewhere} runs are"
        leave(f"{runs} not finished: another process is on it; give the same command later", 3)
    if not session.failed:
        return
    refused = all(isinstance(error, InputError) for _, error in session.failed)
    code = 2 if refused and not session.finished else 1  # 2 says that nothing came of the command
    if session.runs == 1 and session.failed[0][0]:  # a sweep of one: it is said already
        sys.exit(code)
    if not session.failed[0][0]:
        error = session.failed[0][1]
        leave(in_a_sweep(error) if os.environ.get(PLACE) else printable(str(error)), code)
    leave("\n  ".join([f"{len(session.failed)} of the sweep's runs failed:", *failures(session)]), code)


def failures(session: Session) -> list[str]:
    """A line on each run of a sweep that failed, one for those that have failed by the same data."""
    lines = []
    for number, (where, error) in enumerate(session.failed):
        if not any(is_shared(error, before) for _, before in session.failed[:number]):
            others = sum(is_shared(error, later) for _, later in session.failed[number + 1 :])
            more = f" and {others} other run{'s' * (others > 1)} with these data" * (others > 0)
            lines.append(f"{where}{more}: {printable(str(error))}")
    return lines


def show_sweep(session: Session) -> None:
    """Print the table of a sweep's finished runs, and the best of them where a sweeper looks for it."""
    print(f"\n{table_of_runs([outcome for _, outcome in session.finished])}", flush=True)
    if session.objective:
        choose = min if is_minimised(session.objective) else max
        swept, best = choose(session.finished, key=lambda run: run[1])
        count, name = len(session.finished), session.objective.replace("_", " ")
        folder = os.path.relpath(best.folder)
        print(f"best of {count} by {name}: {float(best):.4f} with {printable(swept)}: {folder}", flush=True)


def table_of_runs(outcomes: Sequence[Outcome]) -> str:
    """What `broadopt-table runs` prints, of these runs alone."""
    from broadopt.analysis.comparing import runs_table
    from broadopt.analysis.tables import formats
    from broadopt.analysis.tables.match import Recipes
    from broadopt.config.compose import recipe_of
    from broadopt.runs.results import read_all

    folders: dict[Path, set[Path]] = {}
    for outcome in outcomes:
        folders.setdefault(outcome.results_dir, set()).add(outcome.folder)
    found = [result for root, own in folders.items() for result in read_all(root, sorted(own))[0]]
    return formats.FORMATS["markdown"](runs_table.build(found, recipes=Recipes(recipe_of)))


if __name__ == "__main__":
    main()
