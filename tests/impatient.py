"""broadopt-run as a process of torchrun that waits two seconds for the others to come to the end of a run."""

from datetime import timedelta

from broadopt import run
from broadopt.devices import processes

if __name__ == "__main__":
    processes.PATIENCE = timedelta(seconds=2)
    run.main()
