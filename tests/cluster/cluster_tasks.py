"""What the tests look at in the queue."""

import re
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm_for_tests.sh"


def tasks(state: str) -> list[str]:
    """JOB_TASK of every array task in `state`."""
    out = subprocess.run(
        ["squeue", "--noheader", "--array", "--partition=main", f"--states={state}", "--format=%F_%K"],
        capture_output=True,
        text=True,
    ).stdout
    return re.findall(r"^\s*(\d+_\d+)\s*$", out, flags=re.MULTILINE)
