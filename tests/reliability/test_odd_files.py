"""Whatever a file holds: it is read, or it is left out in a line; no view, no sweep and no run ends by it.

Every case is made from its number, so a failure names what repeats it. The usual tests make a few hundred of each kind,
make test-long thousands.
"""

import copy
import hashlib
import io
import json
import pickle
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from stored import RESNET20, VGG16, record, run, store

from broadopt.config.compose import compose, run_config
from broadopt.config.identity import identity_of
from broadopt.data.cifar_pickles import unpickle
from broadopt.data.decode import FORMATS, UnreadableImage, decode, is_image
from broadopt.errors import InputError
from broadopt.files import read_yaml
from broadopt.launchers.sweep import known
from broadopt.runs import checkpoint, heartbeat, results
from broadopt.runs.folders import run_folder

USUAL, LONG = 300, 6000
NUMBERS = (USUAL, pytest.param(LONG, marks=pytest.mark.long))

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**64), 10**400, 0.5, -0.0, 1e-300, 1e300, 1e15, 3.5, 100.5),
    *(float("nan"), float("inf"), -float("inf"), "", " ", "x", "1", "nan", "../..", "/", ".", "a/b", "\x1b[2J", "\n"),
    *("\ud800", "é" * 300, "=1+1", "${oc.env:HOME}", "finished", "fp32", [], {}, [[]], [None], {"": {}}, {"1": {}}),
    *({"_target_": "os.abort"}, {"name": "x"}, [1, 2, 3], ["1"], [1e300, 1e300], {"1": None}, {"test_accuracy": "x"}),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value in a nested one."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


def changed(content: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A copy in which one to three places are removed, replaced, doubled or put under another key."""
    content = copy.deepcopy(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        path = draw.choice([place for place in places(content) if place])
        node: Any = content
        for key in path[:-1]:
            node = node[key]
        what = draw.randrange(8)
        if what == 0:
            del node[path[-1]]
        elif what == 1 and isinstance(node, dict):
            node[draw.choice(["", "name", "_target_", "\x1b", "1", "1.5", "budgets"])] = node.pop(path[-1])
        elif what == 2:
            node[path[-1]] = copy.deepcopy(content)
        else:
            node[path[-1]] = copy.deepcopy(draw.choice(ODD))
    return content


def damaged(blob: bytes, draw: random.Random) -> bytes:
    """The bytes with some of them flipped, cut out, repeated, swapped or put in."""
    found = bytearray(blob)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at, length = draw.randrange(len(found) + 1), draw.choice((1, 1, 2, 4, 8, 64))
        what = draw.randrange(5)
        if what == 0:
            found[at : at + length] = draw.randbytes(length)
        elif what == 1:
            del found[at : at + length]
        elif what == 2:
            found[at:at] = found[at : at + length] * draw.choice((1, 2, 50))
        elif what == 3:
            found[at:at] = draw.choice((b"\x00", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80", b"(", b"[" * 99, b"\x85"))
        else:
            found = found[:at] if draw.random() < 0.3 else found
    return bytes(found)


def lay(root: Path, name: str, content: dict[str, Any], number: int) -> None:
    """Write a changed file into the folder that its config asks for, where that is one; else into one of its own."""
    folder = root / "runs/odd" / str(number)
    try:
        wanted = run_folder(root, content["config"])
        if root / "runs" in wanted.parents and ".." not in wanted.parts and len(str(wanted)) < 500:
            folder = wanted
        content["identity"] = identity_of(content["config"])
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        pass
    if name == "result.json":
        try:
            content["checksum"] = results.checksum(content)
        except ValueError:  # surrogates, which no checksum is defined for
            content["checksum"] = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError):  # a name that is none, or the place of a file
        folder = root / "runs/odd" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


VIEWS = (
    ("runs", "--at-epoch", "--reach", "50", "--equal-cost"),
    ("runs", "--per-run"),
    ("runs", "--per-run", "--format", "json"),
    ("runs", "--status"),
)
MORE = (
    ("runs",),
    ("table3", "--status"),
    ("table1",),
    ("table3", "--format", "csv"),
    ("runs", "--status", "--tflops", "1"),
    ("table1", "--missing"),
)


def look(root: Path, *, everywhere: bool) -> None:
    """The views, and what a sweep and a run read."""
    for view in (*VIEWS, *MORE) if everywhere else VIEWS:
        out, err = run(*view, "--results", root)
        assert out.endswith("\n")
        assert all(character.isprintable() or character == "\n" for character in out + err), view
    known(root)
    for result in results.read_all(root)[0]:
        if result["state"] == "finished":
            assert results.summary(result).replace("\n", "").isprintable()


def originals(tmp_path: Path) -> list[dict[str, Any]]:
    """Results as runs of several kinds write them."""
    folders = [
        store(tmp_path, record(RESNET20, "method=sgd")),
        store(tmp_path, record(RESNET20, "method=asam", precision="bf16"), state="interrupted"),
        store(tmp_path, record(VGG16, "method=swa"), collected={"1": 70.0, "1.25": 71.0, "1.5": 72.0}),
        store(tmp_path, record("experiment=quickstart", "method=sam", "collect=swa"), state="failed"),
    ]
    found: list[dict[str, Any]] = [json.loads((folder / "result.json").read_text()) for folder in folders]
    found[3]["failure"] = {"reason": "why"}
    found[0]["cost"] |= {"parameters": 10, "macs": 10, "images_per_epoch": 10, "passes": 1}
    return found


@pytest.mark.parametrize("number", NUMBERS)
def test_odd_results_are_read_or_left_out(tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    usual, root = originals(tmp_path / "usual"), tmp_path / "odd"
    for case in range(number):
        draw = random.Random(case)
        content = changed(draw.choice(usual), draw)
        # Each with a seed of its own, so that they do not lie in one folder.
        if isinstance(content.get("config"), dict) and content["config"].get("seed") == content.get("seed") == 1:
            content["config"]["seed"] = content["seed"] = case + 1
        lay(root, "result.json", content, case)
    files = len(list(root.rglob("result.json")))
    valid, left_out = results.read_all(root)
    look(root, everywhere=number > USUAL)
    assert len(valid) + len(left_out) == files > 0.8 * number
    assert valid
    with capsys.disabled():
        print(f"\n{files} odd results: {len(valid)} read, {len(left_out)} left out", end=" ")


@pytest.mark.parametrize("number", NUMBERS)
def test_odd_heartbeats_are_read_or_left_out(tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = record(RESNET20, "method=sam")
    first = heartbeat.Position(step=10, steps=1000, steps_per_epoch=10, images_per_epoch=320, images_per_second=50.0)
    beat = heartbeat.Heartbeat(tmp_path, recorded, device="a device")
    usual = beat._fixed | heartbeat._figures(first, first, seconds=1.0) | {"time": 1e9, "moved": 1e9}
    usual |= {"parameters": 10, "macs": 10, "passes": 2, "machine": "another"}
    root = tmp_path / "odd"
    for case in range(number):
        draw = random.Random(case)
        content = changed(json.loads(json.dumps(usual)), draw)
        if isinstance(content.get("config"), dict) and content["config"].get("seed") == 1:
            content["config"]["seed"] = case + 1
        lay(root, "progress.json", content, case)
    said = [_beat(path) for path in root.rglob("progress.json")]
    assert all(map(str.isprintable, said))
    counts = Counter("left out" if words else "read" for words in said)
    look(root, everywhere=number > USUAL)
    assert counts["read"]
    assert counts["left out"]
    with capsys.disabled():
        print(f"\n{counts.total()} odd heartbeats: {counts['read']} read, {counts['left out']} left out", end=" ")


def _beat(path: Path) -> str:
    """Why a heartbeat is left out; nothing where it is read."""
    try:
        assert heartbeat.read(path.parent) is not None
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("number", NUMBERS)
def test_damaged_bytes_of_results_are_left_out(tmp_path: Path, number: int) -> None:
    folder = store(tmp_path, record(RESNET20, "method=sgd"))
    whole = (folder / "result.json").read_bytes()
    read = 0
    for case in range(number):
        blob = damaged(whole, random.Random(case))
        (folder / "result.json").write_bytes(blob)
        found, left_out = results.read_all(tmp_path)
        assert len(found) + len(left_out) == 1, case
        read += len(found)
    assert read < number / 5  # those where the damage is one of white space, or undone


def outcomes(cases: int, read: Callable[[random.Random], Any], refused: type[Exception]) -> Counter[str]:
    """How many cases are read and how many are refused, each in a line that can be printed."""
    counts: Counter[str] = Counter()
    said = {}
    for case in range(cases):
        try:
            read(random.Random(case))
        except refused as error:
            said[case] = str(error)
            counts["refused"] += 1
        except Exception as error:
            raise AssertionError(f"case {case}") from error
        else:
            counts["read"] += 1
    assert {case: words for case, words in said.items() if not words.isprintable()} == {}
    return counts


def say(counts: Counter[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Print how many were read and how many refused; both have to occur."""
    assert counts["read"]
    assert counts["refused"]
    with capsys.disabled():
        print(f"\n{counts.total()} odd {what}: {counts['read']} read, {counts['refused']} refused", end=" ")


@pytest.mark.parametrize("number", NUMBERS)
def test_odd_pickles_are_read_or_refused(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"data": np.arange(6144, dtype=np.uint8).reshape(2, 3072), "labels": [3, 4], b"name": b"x", "n": ["a", "b"]}
    usual = [pickle.dumps(entry, protocol=protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    # Mostly without the pixels: what is damaged is then an operation.
    small = [pickle.dumps(entry | {"data": np.zeros((1, 2), np.uint8)}, protocol=protocol) for protocol in range(6)]
    operations = [bytes([code]) for code in pickle._Unpickler.dispatch]  # type: ignore[attr-defined]

    def read(draw: random.Random) -> None:
        blob = draw.choice(usual + small * 4)
        if draw.random() < 0.5:
            blob = damaged(blob, draw)
        else:
            at = draw.randrange(2, len(blob))
            blob = blob[:at] + b"".join(draw.choices(operations, k=draw.randrange(1, 40))) + blob[at:]
        unpickle(Path("file"), blob)

    say(outcomes(number, read, InputError), "pickles", capsys)


@pytest.mark.parametrize("number", NUMBERS)
def test_odd_images_are_read_or_refused(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (40, 36, 3)).astype(np.uint8)
    usual = []
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    for kind in FORMATS:
        for mode in ("RGB", "L", "P", "RGBA", "1", "CMYK"):
            content = io.BytesIO()
            try:
                Image.fromarray(pixels).convert(mode).save(content, kind, **({"exif": exif} if kind != "PPM" else {}))
            except (OSError, ValueError):  # this format has no such mode
                continue
            usual.append(content.getvalue())
    assert len(usual) > 20
    deep = io.BytesIO()
    Image.fromarray(np.arange(1440, dtype=np.uint16).reshape(40, 36)).save(deep, "PNG")
    frames = io.BytesIO()
    Image.fromarray(pixels).save(frames, "GIF", save_all=True, append_images=[Image.new("RGB", (36, 40))] * 3)
    usual += [deep.getvalue(), frames.getvalue()]

    def read(draw: random.Random) -> None:
        content = draw.choice(usual)
        # The header is where it hurts.
        cut = draw.choice((64, 256, len(content)))
        content = damaged(content[:cut], draw) + content[cut:]
        is_image(content)
        square, _ = decode(content)
        assert (square.shape, square.dtype) == ((32, 32, 3), np.uint8)

    counts = outcomes(number, read, UnreadableImage)
    assert counts["read"]
    assert counts["refused"]
    say(counts, "images", capsys)


@pytest.mark.parametrize("number", NUMBERS)
def test_odd_configs_are_read_or_refused(tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    usual = OmegaConf.to_yaml(run_config(compose(["experiment=quickstart", "method=asam"])).values()).encode()
    parts = [
        b"&a ",
        b"*a",
        b"!!map ",
        b"!!binary ",
        b"<<: ",
        b"? ",
        b"- ",
        b"{",
        b"[",
        b"---\n",
        b"|\n",
        b"'",
        b'"',
        b"\t",
    ]

    def read(draw: random.Random) -> None:
        blob = damaged(usual, draw)
        for _ in range(draw.randrange(3)):
            at = draw.randrange(len(blob) + 1)
            blob = blob[:at] + draw.choice(parts) + blob[at:]
        (tmp_path / "config.yaml").write_bytes(blob)
        json.dumps(read_yaml(tmp_path / "config.yaml", limit=1 << 20))

    say(outcomes(number // 3, read, ValueError), "configs", capsys)


@pytest.mark.parametrize("number", NUMBERS)
def test_odd_checkpoints_are_read_or_passed_over(
    tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    state = {"progress": {"step": 3, "history": [{"epoch": 1.0}]}, "model": {"weight": torch.arange(12.0).view(3, 4)}}
    checkpoint.save(tmp_path, state, identity="x", step=1)
    (path,) = checkpoint.files(tmp_path)
    _, _, payload = path.read_bytes().partition(b"\n")

    def read(draw: random.Random) -> None:
        blob = damaged(payload, draw)
        header = {"format": checkpoint.FORMAT, "identity": "x", "step": 1, "length": len(blob)}
        header["sha256"] = hashlib.sha256(blob).hexdigest()
        path.write_bytes(json.dumps(header).encode() + b"\n" + blob)
        caplog.clear()
        found = checkpoint.load(tmp_path, identity="x", device="cpu")
        assert all(message.isprintable() for message in caplog.messages)
        if found is None:
            raise ValueError("passed over")

    say(outcomes(number, read, ValueError), "checkpoints", capsys)
