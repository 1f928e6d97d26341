"""A user's own callback of Hydra's, found through PYTHONPATH: it writes down what it is called for."""

import os
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback


class Diary(Callback):
    """A line a call into the file that `path` names."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def write(self, line: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{line}\n")

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        self.write(f"start {config.lr}")

    def on_job_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        self.write(f"end {config.lr} {job_return.status.name} {os.path.isdir(config.hydra.runtime.output_dir)}")

    def on_run_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        self.write(f"run {job_return.status.name}")

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        self.write("multirun")
