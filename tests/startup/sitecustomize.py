"""Lets a command of broadopt that anything starts be forked by the tests' server (see fork_server.py).

Python runs this at its start where the folder is in PYTHONPATH. This interpreter, which has imported nothing yet, then
only stands for the forked process: it passes signals on and ends as that one ends, and the process ends with it.
"""

import os
import sys
from pathlib import Path


def command() -> list[str] | None:
    """What of this interpreter's command line the server can carry out."""
    words = sys.orig_argv[1:]
    first, *others = words[words[:1] == ["-u"] :] or [""]  # torchrun starts all with -u
    if first == "-m" and others and others[0] == "broadopt.run":
        return [first, *others]
    is_command = Path(first).parent == Path(sys.executable).parent and Path(first).name.startswith("broadopt-")
    is_script = first.endswith(".py") and Path(first).resolve().parent == Path(__file__).parents[2] / "scripts"
    return [first, *others] if is_command or is_script else None


def inherited() -> dict[int, int]:
    """The open descriptors."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.get_inheritable(int(name)):
                found[int(name)] = int(name)
        except OSError:  # that of the listing
            continue
    return found


def stand_for(words: list[str], place: str) -> None:
    """Be the process that the server forks for `words`; returns where it does not."""
    import signal

    sys.path.append(str(Path(__file__).parents[1]))
    import fork_server

    sys.path.pop()
    streams = inherited()
    if not {0, 1, 2} <= streams.keys():
        return
    try:
        server = fork_server.connected(place)
    except OSError:
        return
    request = fork_server.request_of(words, cwd=os.getcwd(), environment=os.environ)
    request["unbuffered"] = bool(sys.stdout) and sys.stdout.write_through
    caught = [one for one in fork_server.DEFAULTS if one not in request["ignored"] and one is not signal.SIGCHLD]
    signal.pthread_sigmask(signal.SIG_BLOCK, caught)
    try:
        pid = fork_server.asked(server, request, streams)
    except OSError:  # an environment that is too large for a message
        pid = None
    if pid is None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, caught)
        return
    for one in caught:
        signal.signal(one, lambda number, _: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, caught)
    code = fork_server.number(server)
    if code >= 0:
        os._exit(code)
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    signal.pause()


if os.environ.get("FORK_SERVER") != "no" and (at := os.environ.get("FORK_SERVER_AT")):
    found = command()
    if found is not None:
        stand_for(found, at)
