"""README and docs/ as their tests see them: blocks in order, files that they name, commands in a folder of its own."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import fork_server
from command import BIN, PATIENCE, Process
from PIL import Image

CHECKOUT = Path(__file__).parent.parent
DOCUMENTS = [Path("README.md"), *sorted(path.relative_to(CHECKOUT) for path in (CHECKOUT / "docs").glob("*.md"))]

SHORT = r"quickstart|repeat=|two_colours|small_net|--help|--cfg"
HOURS = rf"^(?!.*plan=true)((?:CUDA_VISIBLE_DEVICES=\d+ )?broadopt-run (?!.*({SHORT})).*)$"
SUBSTITUTES = {
    # What a command needs that a test has not, and what is run instead; everything else runs as it stands.
    "the network, to install dependencies": (
        r"^pip install \.$",
        f"{sys.executable} -m pip install --dry-run --no-deps --no-index --no-build-isolation {CHECKOUT}",
    ),
    "the script of an installed torch": (r"^torchrun ", "python -m torch.distributed.run --standalone "),
    "four devices": (r"--nproc-per-node 4 ", "--nproc-per-node 1 "),
    "hours of training": (HOURS, r"\1 plan=true"),
    "the same, by torchrun": (r"( -m broadopt.run .*)$", r"\1 plan=true"),
    "hours of a script, which tests/test_reproduce.py runs": (
        r"^(scripts/\w+\.sh) (hydra.*)$",
        r"bash -n \1 && broadopt-run -m \2 experiment=table3/resnet20 plan=true",
    ),
    "hours of a script without arguments": (r"^(scripts/\w+\.sh)$", r"bash -n \1"),
    "hours on a GPU, which tests/test_first_rows.py plans": (
        r"^(?:RESERVE=\d+ )?(scripts/first_rows\.sh) .*$",
        r"bash -n \1",
    ),
    "the network, for wheels, and these": (
        r"^(pip wheel|python3 -m pip install) --no.*$",
        f"{sys.executable} -m pip --version",
    ),
    "minutes of training": (r"^(broadopt-run -m experiment=quickstart.*)$", r"\1 budget=0.1 model.depth=8"),
    "the same, by four processes": (r"^(broadopt-run -m hydra/launcher=local .*)$", r"\1 plan=true"),
    "every row, planned": (r"glob\(table3/\*\)(.*)seed=1,2,3[,45]*", r"glob(table3/resnet20)\1seed=1"),
    "every row of a network, planned": (r"glob\(table1/vgg16\*\)(.*)seed=1,2,3", r"glob(table1/vgg16_cifar10)\1seed=1"),
    "a reader who presses Ctrl-C": (r"--watch$", "--status"),
    "hours of a whole table": (r"\| sh\b", "| head -n 1 | sed 's/$/ plan=true/' | sh"),
    "the same, from a file": (r"(--output missing.txt)$", r"\1 && sed -i '2,$d; s/$/ plan=true/' missing.txt"),
    "a Slurm cluster": (r"^sbatch --array=.*? --wrap ", "SLURM_ARRAY_TASK_ID=1 bash -c "),
    "minutes of simulating": (r"^(python scripts/simulate_results.py FOLDER)", r"\1 --runs 60 --running 6"),
    "minutes of measuring": (
        r"^((?:timeout \d+ )?python3? scripts/(?:benchmark|gpu_check|vgg19_heads)\.py.*)$",
        r"\1 --help",
    ),
}


FORKED = re.compile(
    r"(?P<path>PYTHONPATH=\. )?(?:(?P<program>broadopt-\w+)|python (?P<script>scripts/\w+\.py))(?P<arguments>[^|&;<>]*)"
)
"""Commands that need no shell."""


@dataclass(frozen=True)
class Block:
    """What stands between two fences, and the file that the line above says it is."""

    language: str
    content: str
    name: str | None


@dataclass(frozen=True)
class Ran:
    """A line of a document, what was run for it, and what that printed."""

    line: str
    command: str
    output: str


def text(document: str | Path) -> str:
    """A document of the checkout."""
    return (CHECKOUT / document).read_text(encoding="utf-8")


def section(document: str | Path, title: str) -> str:
    """What stands below a heading of the second level."""
    return text(document).split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(content: str) -> list[Block]:
    """The fenced blocks of a document, in order."""
    found, end = [], 0
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", content, flags=re.DOTALL | re.MULTILINE):
        above = content[end : match.start()].strip().rpartition("\n")[2]
        name = re.search(r"\b[Aa]s `([\w/]+\.(?:py|yaml))`", above)
        found.append(Block(match[1], match[2], name[1] if name else None))
        end = match.end()
    return found


def substituted(line: str, used: set[str]) -> str:
    """The command of a line without its comment, as a test can run it; notes in `used` what was changed."""
    command = re.sub(r"\s+# .*$", "", line.strip())
    for need, (pattern, replacement) in SUBSTITUTES.items():
        command, count = re.subn(pattern, replacement, command)
        if count:
            used.add(need)
    return command


def lines_of(block: Block) -> list[str]:
    """The commands of a bash block."""
    return [line for line in block.content.splitlines() if line.strip() and not line.startswith("#")]


def prepared(folder: Path) -> Path:
    """`folder` as a checkout in which README was followed: its files are written, with a few images beside them."""
    (folder / "results").mkdir()
    (folder / "scripts").symlink_to(CHECKOUT / "scripts")
    for committed in ("cifar10_resnet20_5epochs", "cifar10_resnet20_10epochs", "cifar10_resnet20_rho"):
        (folder / "results" / committed).symlink_to(CHECKOUT / "results" / committed)
    for split in ("train", "test"):
        for number, name in enumerate(("cats", "dogs")):
            (folder / "my_images" / split / name).mkdir(parents=True)
            image = Image.new("RGB", (40, 30), (99 * number,) * 3)
            for copy in range(64 if split == "train" else 1):  # one batch of the protocol
                image.save(folder / "my_images" / split / name / f"{copy}.png")
    for block in blocks(text("README.md")):
        write(block, folder)
    return folder


def write(block: Block, folder: Path) -> None:
    """Write a block that is a file."""
    if block.name is not None:
        (folder / block.name).parent.mkdir(parents=True, exist_ok=True)
        (folder / block.name).write_text(block.content)


def followed(document: str | Path, folder: Path) -> list[Ran]:
    """Do what a document says, from its first block to its last: write files, run commands and Python."""
    found: list[Ran] = []
    for block in blocks(text(document)):
        if block.name is not None:
            write(block, folder)
        elif block.language == "bash":
            found += [run(line, folder) for line in lines_of(block)]
        elif block.language == "python":
            found.append(executed(block, folder))
        else:
            assert block.language in ("mermaid", "bibtex"), block
    return found


def run(line: str, folder: Path) -> Ran:
    """Run a line: in bash, or, where it is one command or script of broadopt and nothing else, forked from the server
    that has torch imported. Raises AssertionError where it fails.
    """
    command = substituted(line, set())
    match = FORKED.fullmatch(command)
    process = forked(match, folder) if match else in_bash(command, folder)
    try:
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, f"{line}\n{command}\n{output}{errors}"
    return Ran(line, command, output)


def in_bash(command: str, folder: Path) -> Process:
    """A command as a shell starts it."""
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(["bash", "-o", "pipefail", "-c", command], cwd=folder, env=environment, **options)


def forked(match: re.Match[str], folder: Path) -> Process:
    """A command. PYTHONPATH, which an interpreter reads when it starts, is put into the script instead."""
    script = folder / match["script"] if match["script"] else BIN / match["program"]
    if match["path"]:
        here = folder / ".bin" / script.name
        here.parent.mkdir(exist_ok=True)
        here.write_text(f'import sys\nsys.path.insert(1, "")\n{script.read_text()}')
        script = here
    environment = fork_server.environment_of_server()
    command = [str(script), *shlex.split(match["arguments"])]
    return fork_server.Forked(command, cwd=folder, env=environment, start_new_session=False)


def executed(block: Block, folder: Path) -> Ran:
    """Run a Python block in this process, in `folder`."""
    before, output = Path.cwd(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(output):
            exec(block.content, {})
    finally:
        os.chdir(before)
    return Ran(block.content, block.content, output.getvalue())
