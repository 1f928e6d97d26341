"""Real processes of broadopt's commands without the seconds in which each would import torch.

A server that has imported what the commands import, and has done nothing else, forks for every command. The child takes
the command's arguments, folder, environment and limits, runs the console script as __main__, and ends as an interpreter
does: signals, exit codes, streams, files and locks are those of a process of its own. What a process does before and
while it imports torch is not seen through it: `takes` says which environments need a process that begins at the
beginning, and FORK_SERVER=no in a command's environment gives it one.

Commands of the tests themselves are forked as `Forked`. Those that launchers and scripts start come to the server by
startup/sitecustomize.py, which an interpreter with tests/startup in its PYTHONPATH runs at its start.
"""

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import io
import json
import os
import pkgutil
import resource
import runpy
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TextIO

READ_AT_START = (
    *("PYTHON", "OMP_", "GOMP_", "KMP_", "MKL_", "LD_", "MALLOC_", "LC_", "LANG"),
    *("TORCH_", "TORCHINDUCTOR_", "TORCHDYNAMO_", "ATEN_", "CUDA_"),
)
"""Beginnings of the names of variables that an interpreter or a library looks at once, when it is loaded; those of
torchrun (TORCHELASTIC_) are read by each run. PYTHONPATH is passed on, unless there is another broadopt in it.
"""
DEFAULTS = tuple(one for one in signal.Signals if one not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE))
"""Signals that may be ignored by a new process; SIGPIPE always is by Python."""
LIMITS = tuple(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
NUMBER = struct.Struct("i")


class Forked:
    """A command carried out by a child of the server: what the tests use of subprocess.Popen, with text streams."""

    def __init__(self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], start_new_session: bool) -> None:
        self.args = list(command)
        self.returncode: int | None = None
        self._readers: dict[TextIO, threading.Thread] = {}
        self._read: dict[TextIO, str] = {}
        (output, its_output), (errors, its_errors) = os.pipe(), os.pipe()
        self._server = connected(server())
        request = request_of(self.args, cwd=cwd, environment=env) | {"session": start_new_session}
        pid = asked(self._server, request, {1: its_output, 2: its_errors})
        assert pid is not None, "the fork server has another environment than takes() believes"
        self.pid = pid
        os.close(its_output)
        os.close(its_errors)
        self.stdout, self.stderr = os.fdopen(output), os.fdopen(errors)

    def poll(self) -> int | None:
        """The exit code, or None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit code, negative for a signal. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._server], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = number(self._server)
            self._server.close()  # from now on the number of the process may be another's
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What is still to be read from stdout and stderr up to their ends. Raises subprocess.TimeoutExpired."""
        for stream in (self.stdout, self.stderr):
            if not stream.closed and stream not in self._readers:
                self._readers[stream] = threading.Thread(target=self._read_all, args=[stream], daemon=True)
                self._readers[stream].start()
        for reader in self._readers.values():
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        return self._read.get(self.stdout, ""), self._read.get(self.stderr, "")

    def _read_all(self, stream: TextIO) -> None:
        with stream:
            self._read[stream] = stream.read()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def request_of(command: Sequence[str], *, cwd: str | Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """What the server has to know of a command: the path of a console script, or -m and a module; and its arguments."""
    mask = os.umask(0)
    os.umask(mask)
    return {
        "command": list(command),
        "cwd": str(cwd),
        "environment": dict(environment),
        "limits": [(limit, resource.getrlimit(limit)) for limit in LIMITS],
        "ignored": [int(one) for one in DEFAULTS if signal.getsignal(one) is signal.SIG_IGN],
        "umask": mask,
        "unbuffered": False,
        "session": False,
        "prefix": sys.prefix,
    }


def connected(place: str) -> socket.socket:
    """A connection to the server. Raises OSError where there is none."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(f"\0{place}")
    return connection


def asked(server: socket.socket, request: Mapping[str, Any], streams: Mapping[int, int]) -> int | None:
    """Let the server fork; the number of the process, or None where it does not take the request. `streams`:
    descriptors of this process, by what they are to be in the other.
    """
    message = json.dumps({**request, "streams": list(streams)}).encode()
    socket.send_fds(server, [message], list(streams.values()))
    return number(server) or None


def number(server: socket.socket) -> int:
    """The next number that the server reports of a process: its own, then its exit code. AssertionError without one."""
    received = server.recv(NUMBER.size)
    assert len(received) == NUMBER.size, "the fork server has ended"
    found: int = NUMBER.unpack(received)[0]
    return found


def takes(environment: Mapping[str, str]) -> bool:
    """Whether a command with this environment can be forked."""
    if sys.platform != "linux" or "no" in (os.environ.get("FORK_SERVER"), environment.get("FORK_SERVER")):
        return False
    return is_like(environment, environment_of_server())


def is_like(environment: Mapping[str, str], that_of_server: Mapping[str, str]) -> bool:
    """Whether an interpreter that starts with one reads what one with the other has read."""
    return _read_at_start(environment) == _read_at_start(that_of_server)


def _read_at_start(environment: Mapping[str, str]) -> dict[str, object]:
    found = {name: value for name, value in environment.items() if name.startswith(READ_AT_START)}
    path = found.pop("PYTHONPATH", "")
    found.pop("CUDA_VISIBLE_DEVICES", "")  # read when CUDA is first called, which the server never does
    found.pop("TORCH_NCCL_ASYNC_ERROR_HANDLING", "")  # of torchrun's; read when processes are joined by NCCL
    found.pop("TORCHINDUCTOR_CACHE_DIR", "")  # torch itself sets it when it is first used, in the process of the tests
    for name in ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"):  # scikit-learn sets them in whatever imports it
        found.pop(name, "")
    if found.get("OMP_NUM_THREADS") == "1":  # one thread waits for none, so how they would wait does not matter
        found = {name: value for name, value in found.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    return found | {"another broadopt": any((folder / "broadopt").exists() for folder in _folders(path))}


def _folders(path: str) -> list[Path]:
    return [Path(folder) for folder in path.split(os.pathsep) if folder]


@cache
def environment_of_server() -> dict[str, str]:
    """As command.py gives it to every command."""
    usual = {name: value for name, value in os.environ.items() if name != "FORK_SERVER"}
    return usual | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}


@cache
def server() -> str:
    """The place of the server: that of the process that has started this one, else of one that is started here for this
    process and those that it starts, which find it by FORK_SERVER_AT. It ends with this process at the latest.
    """
    if "FORK_SERVER_AT" in os.environ:
        return os.environ["FORK_SERVER_AT"]
    place = f"broadopt-tests-{os.getpid()}-{secrets.token_hex(8)}"
    requests = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    requests.bind(f"\0{place}")  # an abstract name: a path in a temporary folder can be too long for a socket
    requests.listen(16)  # from here on what asks waits until the server has imported what it needs, or has failed
    ours, theirs = socket.socketpair()
    handed = [theirs.fileno(), requests.fileno()]
    process = subprocess.Popen(
        [sys.executable, __file__, *map(str, handed)],
        env=environment_of_server(),
        pass_fds=handed,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C of a terminal is for the tests
    )
    theirs.close()
    requests.close()
    os.environ["FORK_SERVER_AT"] = place
    atexit.register(lambda: (ours.close(), process.wait()))
    return place


def use_huge_pages() -> None:
    """Have the kernel, where it can, keep the memory of this process in pages of 2 MiB: a fork copies a table of all
    pages, and of small ones that takes longer than many a command.
    """
    size, collapse = 1 << 21, 25  # MADV_COLLAPSE, since Linux 6.1
    advise = ctypes.CDLL(None).madvise
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, rights, _, device, *_ = line.split()
        if rights == "rw-p" and device == "00:00":
            start, end = (int(address, 16) for address in addresses.split("-"))
            start, end = -(-start // size) * size, end // size * size
            if start < end:
                advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), collapse)


@dataclass
class Child:
    """A forked process: its number, the descriptor that tells its end, and the connection of who asked for it."""

    pid: int
    end: int
    connection: socket.socket

    def report(self) -> None:
        """Tell the other side of the end. The process is not reaped before the other side has closed: until then the
        number is no other process's.
        """
        os.close(self.end)
        self.end = -1
        status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        assert status is not None
        code = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
        with contextlib.suppress(OSError):
            self.connection.send(NUMBER.pack(code))

    def leave(self) -> None:
        """The other side has closed: the process is killed if it has not ended."""
        if self.end >= 0:
            os.close(self.end)
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.connection.close()


def serve(owner: socket.socket, requests: socket.socket, environment: Mapping[str, str]) -> dict[str, Any]:
    """Fork for every one of `requests` until the owner closes its end; returns in the children alone, with the request
    of each. Taken is what has the `environment` that this process has started with, as far as it is read at a start. A
    child is killed where the other side ends first.
    """
    children: list[Child] = []
    while True:
        ends = {child.end: child for child in children if child.end >= 0}
        connections = {child.connection.fileno(): child for child in children}
        ready = select.select([owner, requests, *ends, *connections], [], [])[0]
        for end in ends.keys() & set(ready):
            ends[end].report()
        for connection in connections.keys() & set(ready):
            connections[connection].leave()
            children.remove(connections[connection])
        if owner in ready:
            for child in children:
                child.leave()
            os._exit(0)
        if requests in ready:
            connection = requests.accept()[0]
            message, descriptors, *_ = socket.recv_fds(connection, 1 << 20, 64)
            request = json.loads(message or b"{}")
            if not message or not is_carried_out_here(request, environment):
                with contextlib.suppress(OSError):
                    connection.send(NUMBER.pack(0))
                connection.close()
            elif (pid := os.fork()) == 0:
                for other in (owner, requests, connection, *(child.connection for child in children)):
                    other.close()
                for child in children:
                    if child.end >= 0:
                        os.close(child.end)
                take(descriptors, request["streams"])
                return request
            else:
                children.append(Child(pid, os.pidfd_open(pid), connection))
                with contextlib.suppress(OSError):
                    connection.send(NUMBER.pack(pid))
            for descriptor in descriptors:
                os.close(descriptor)


def take(descriptors: Sequence[int], targets: Sequence[int]) -> None:
    """Make received descriptors those of the numbers `targets`."""
    above = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 1000) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for descriptor, target in zip(above, targets, strict=True):
        os.dup2(descriptor, target)
        os.close(descriptor)


def is_carried_out_here(request: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    """Whether a new interpreter would read and import what this one, of that environment, has."""
    ours, here = Path(__file__).parents[1] / "broadopt", Path(request["cwd"], "broadopt")
    is_ours = request["command"][0] != "-m" or not here.exists() or here.samefile(ours)
    return is_ours and request["prefix"] == sys.prefix and is_like(request["environment"], environment)


def become(request: dict[str, Any]) -> None:
    """Make this process what a new interpreter is when it comes to the console script or the module."""
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    tempfile.tempdir = None  # what TMPDIR was for the server
    for limit, values in request["limits"]:
        resource.setrlimit(limit, tuple(values))
    for one in request["ignored"]:
        signal.signal(one, signal.SIG_IGN)
    # The server's streams can be sought in, a pipe cannot: they are made anew, as an interpreter makes them.
    encoding, raw = sys.stdout.encoding, open(1, "wb", buffering=0, closefd=False)  # noqa: SIM115
    unbuffered = request["unbuffered"]
    sys.stdout = io.TextIOWrapper(raw if unbuffered else io.BufferedWriter(raw), encoding, write_through=unbuffered)
    sys.stderr = open(2, "w", encoding=sys.stderr.encoding, errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    folders = _folders(os.environ.get("PYTHONPATH", ""))
    hidden = {file.stem for folder in folders for file in folder.glob("*")} & set(sys.modules) - {"sitecustomize"}
    assert not hidden, f"PYTHONPATH has {hidden}, which the server has imported from elsewhere"
    first = request["command"][0]
    sys.path[:1] = [request["cwd"] if first == "-m" else str(Path(first).parent), *map(str, folders)]
    sys.argv = request["command"][first == "-m" :]


def carry_out(command: Sequence[str]) -> None:
    """Run a console script or a module and end as an interpreter does, but for the objects of the libraries, which are
    not taken apart one by one: that would copy every page that is shared with the server, and take longer than most
    commands.

    Where something is left to say (a traceback, a message as exit code, a stream that cannot be flushed), the
    interpreter's own end says it.
    """
    try:
        if command[0] == "-m":
            sys.modules.pop(command[1], None)
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as an interpreter does first
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.exit(code)
    os._exit(code)


if __name__ == "__main__":
    at_start = dict(os.environ)  # what is imported may add to it
    # All that the commands import, much of it when they first need it.
    import logging.handlers  # noqa: F401

    import filelock  # noqa: F401
    import hydra._internal.hydra
    import hydra.experimental.callback
    import hydra.main  # noqa: F401
    import hydra_plugins.hydra_optuna_sweeper._impl  # noqa: F401
    import kept_configs
    import pandas  # noqa: F401
    import pyarrow.pandas_compat  # noqa: F401
    import safetensors.torch  # noqa: F401
    import tabulate  # noqa: F401
    import torch._inductor  # noqa: F401
    from hydra.core.plugins import Plugins
    from scipy import stats  # noqa: F401
    from statsmodels.stats import multitest  # noqa: F401

    import broadopt

    Plugins.instance()  # imports every plugin of Hydra's that is installed, anew: ahead of what is derived from them
    for module in pkgutil.walk_packages(broadopt.__path__, "broadopt."):
        if not module.name.endswith(("mlflow_run", "tensorboard_run", "trackio_run", "wandb_run")):  # not of commands
            importlib.import_module(module.name)
    kept_configs.install()
    kept_configs.warm()

    for finalizer in tuple(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False  # torch would take all its operators apart at the end of every command
    gc.freeze()
    use_huge_pages()
    taken = serve(*(socket.socket(fileno=int(number)) for number in sys.argv[1:]), at_start)
    become(taken)
    carry_out(taken["command"])
