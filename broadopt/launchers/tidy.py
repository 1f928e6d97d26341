"""What broadopt has to do where Hydra calls back, after the callbacks of the user."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig


class Tidy(Callback):
    """Removes the folders that Hydra has made in vain, and keeps its own report of a failure back.

    Hydra calls those that come later in its config earlier at an end: the user's have seen everything as it was.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """A run has a folder among the results; that of Hydra remains where something was written into it."""
        folder = Path(config.hydra.runtime.output_dir)
        if config.hydra.mode == RunMode.MULTIRUN or folder != Path.cwd():
            with suppress(OSError):
                folder.rmdir()

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        """The failure is kept for the summary, which reports it in one line; Hydra would raise it once more."""
        job_return: JobReturn = kwargs["job_return"]
        if job_return.status == JobStatus.FAILED:
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None
