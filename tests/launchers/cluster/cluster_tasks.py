"""What the tests look at in the queue."""

import re
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "scripts" / "slurm_for_tests.sh"


def tasks(state: str) -> list[str]:
    """JOB_TASK of every array task in `state`, the last started first."""
    selected = ["--array", "--partition=main", f"--states={state}", "--sort=-S"]
    command = ["squeue", "--noheader", *selected, "--format=%F_%K"]
    out = subprocess.run(command, capture_output=True, text=True).stdout
    return re.findall(r"^\s*(\d+_\d+)\s*$", out, flags=re.MULTILINE)
