"""Real processes of broadopt-run without the seconds in which each would import torch.

A server that has imported what a run imports, and has done nothing else, forks for every command. The child takes the
command's arguments, folder, environment and limits, runs the console script as __main__, and ends as an interpreter
does: signals, exit codes, streams, files and locks are those of a process of its own. What a process does before and
while it imports torch is not seen through it: `takes` says which environments need a process that begins at the
beginning, and FORK_SERVER=no in the tests' environment gives every command one.
"""

import atexit
import contextlib
import gc
import json
import os
import resource
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
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
        self._nanny, its_nanny = socket.socketpair()
        request = {
            "command": self.args,
            "cwd": str(cwd),
            "environment": dict(env),
            "limits": [(limit, resource.getrlimit(limit)) for limit in LIMITS],
            "session": start_new_session,
        }
        socket.send_fds(server(), [json.dumps(request).encode()], [its_output, its_errors, its_nanny.fileno()])
        os.close(its_output)
        os.close(its_errors)
        its_nanny.close()
        self.stdout, self.stderr = os.fdopen(output), os.fdopen(errors)
        self.pid = self._number()

    def _number(self) -> int:
        received = self._nanny.recv(NUMBER.size, socket.MSG_WAITALL)
        assert len(received) == NUMBER.size, "the fork server has ended"
        found: int = NUMBER.unpack(received)[0]
        return found

    def poll(self) -> int | None:
        """The exit code, or None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit code, negative for a signal. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._nanny], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = self._number()
            self._nanny.close()  # from now on the number of the process may be another's
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


def takes(environment: Mapping[str, str]) -> bool:
    """Whether a command with this environment can be forked."""
    usable = sys.platform == "linux" and os.environ.get("FORK_SERVER") != "no"
    return usable and _read_at_start(environment) == _read_at_start(environment_of_server())


def _read_at_start(environment: Mapping[str, str]) -> dict[str, object]:
    found = {name: value for name, value in environment.items() if name.startswith(READ_AT_START)}
    path = found.pop("PYTHONPATH", "")
    return found | {"another broadopt": any((folder / "broadopt").exists() for folder in _folders(path))}


def _folders(path: str) -> list[Path]:
    return [Path(folder) for folder in path.split(os.pathsep) if folder]


@cache
def environment_of_server() -> dict[str, str]:
    """As command.py gives it to every command."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}


@cache
def server() -> socket.socket:
    """Start the server of this process; it ends when the socket is closed, at the latest with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())],
        env=environment_of_server(),
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C of a terminal is for the tests
    )
    theirs.close()
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


def serve(requests: socket.socket) -> dict[str, Any]:
    """Fork for every request; returns in the children alone, with the request of each."""
    while True:
        message, descriptors, *_ = socket.recv_fds(requests, 1 << 20, 3)
        with contextlib.suppress(ChildProcessError):  # nannies that have ended
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not message:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            return nursed(json.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def nursed(request: dict[str, Any], output: int, errors: int, nanny: int) -> dict[str, Any]:
    """Fork once more, and let this process report the number and the end of its child, which alone returns."""
    child = os.fork()
    if child == 0:
        os.close(nanny)
        for descriptor, place in ((output, 1), (errors, 2)):
            os.dup2(descriptor, place)
            os.close(descriptor)
        return request
    os.close(output)
    os.close(errors)
    with socket.socket(fileno=nanny) as report:
        report.send(NUMBER.pack(child))
        # Not reaped before the other side knows of the end: until then the number is no other process's.
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        report.send(NUMBER.pack(code))
        report.recv(1)
    os.waitpid(child, 0)
    os._exit(0)


def become(request: dict[str, Any]) -> None:
    """Make this process what a new interpreter is when it comes to the console script."""
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # what TMPDIR was for the server
    for limit, values in request["limits"]:
        resource.setrlimit(limit, tuple(values))
    # The server's streams can be sought in, a pipe cannot: they are made anew, as an interpreter makes them.
    sys.stdout = open(1, "w", encoding=sys.stdout.encoding, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding=sys.stderr.encoding, errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = request["command"]
    folders = _folders(os.environ.get("PYTHONPATH", ""))
    sys.path[:1] = [str(Path(sys.argv[0]).parent), *map(str, folders)]
    hidden = {file.stem for folder in folders for file in folder.glob("*")} & set(sys.modules)
    assert not hidden, f"PYTHONPATH has {hidden}, which the server has imported from elsewhere"


if __name__ == "__main__":
    import torch._inductor  # noqa: F401 - by set_flags in every run

    import broadopt.run
    import broadopt.training.execute
    import broadopt.training.plan  # noqa: F401 - all that runs and plans import

    gc.freeze()
    become(serve(socket.socket(fileno=int(sys.argv[1]))))
    runpy.run_path(sys.argv[0], run_name="__main__")
