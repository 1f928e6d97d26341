"""What trackers hold, read back by their own readers: every value that is there, doubles included."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

Value = tuple[int, str, float]
"""Step, name and value."""


@dataclass(frozen=True)
class Held:
    """A run in a tracker."""

    name: str
    values: list[Value]
    hyperparameters: Mapping[str, Any]
    state: str | None = None


def in_tensorboard(place: Path) -> list[Held]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    held = []
    folders = sorted({file.parent for file in (place / "tensorboard").rglob("*tfevents*")})
    for folder in folders:
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        values = [(event.step, tag, event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]
        (content,) = events.PluginTagToContent("hparams").values()
        found = HParamsPluginData.FromString(content).session_start_info.hparams
        plain = {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items()}
        held.append(Held(folder.relative_to(place / "tensorboard").as_posix(), values, plain))
    return held


def in_wandb(place: Path) -> list[Held]:
    held = []
    for file in sorted((place / "wandb").glob("offline-run-*/*.wandb")):
        values: list[Value] = []
        name, config, state = "", [], None
        for record in wandb_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run" and record.run.display_name:
                name, config = record.run.display_name, record.run.config.update
            if kind == "exit":
                state = str(record.exit.exit_code)
            if kind == "history":
                items = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                step = items["_step"]
                values += [(step, key, value) for key, value in items.items() if not key.startswith("_")]
        updates = {update.key: json.loads(update.value_json) for update in config if update.key != "_wandb"}
        held.append(Held(name, values, updates, state))
    return held


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: behind 7 bytes of header a log in LevelDB's format, in blocks of 32 KiB that no
    piece of a record crosses.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, payload = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position < len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        payload += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(payload)
            payload = b""


def in_mlflow(place: Path) -> list[Held]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place.absolute() / 'mlflow.db'}")
    held = []
    for run in client.search_runs([client.get_experiment_by_name("broadopt").experiment_id]):
        values = [
            (metric.step, name, metric.value)
            for name in run.data.metrics
            for metric in client.get_metric_history(run.info.run_id, name)
        ]
        held.append(Held(run.info.run_name, values, run.data.params, run.info.status))
    return held


def in_trackio(place: Path) -> list[Held]:
    import sqlite3
    from collections import defaultdict

    values: dict[str, list[Value]] = defaultdict(list)
    with sqlite3.connect(place / "trackio/broadopt.db") as database:
        for name, step, metrics in database.execute("SELECT run_name, step, metrics FROM metrics"):
            values[name] += [(step, key, value) for key, value in json.loads(metrics).items()]
        configs = dict(database.execute("SELECT run_name, config FROM configs"))
    return [Held(name, found, json.loads(configs[name])) for name, found in values.items()]


READERS: Mapping[str, Callable[[Path], list[Held]]] = {
    "tensorboard": in_tensorboard,
    "wandb": in_wandb,
    "mlflow": in_mlflow,
    "trackio": in_trackio,
}
INSTALLED = [name for name in READERS if find_spec(name)]
MISSING = "its package is not installed: pip install '.[test]'"
EACH = [pytest.param(name, marks=[] if name in INSTALLED else pytest.mark.skip(reason=MISSING)) for name in READERS]
"""Every tracker, for parametrized tests."""


def held_by(tracker: str, place: Path) -> Held:
    """The one run that a tracker holds below `place`."""
    (run,) = READERS[tracker](place)
    return run
