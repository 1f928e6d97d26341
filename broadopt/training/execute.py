"""One run, from its checked config to its result."""

import logging
import os
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from broadopt import predictor
from broadopt.config.identity import SEMANTICS, identity_of, recorded
from broadopt.config.instantiate import instantiated, without
from broadopt.devices import processes as distributed
from broadopt.devices.device import choose_device, choose_precision, device_name, environment, peak_memory, set_flags
from broadopt.errors import InputError, Interrupted, RunFailed
from broadopt.runs import checkpoint, heartbeat, results
from broadopt.runs.heartbeat import Heartbeat
from broadopt.runs.lock import only_writer
from broadopt.signals import Stop
from broadopt.training.build import build
from broadopt.training.loop import Parts, Training
from broadopt.training.progress import reporter

log = logging.getLogger("broadopt")


def execute(values: dict[str, Any], stop: Stop) -> None:
    """Carry out one run, or show the result of one that is finished. Raises InputError, RunFailed, Interrupted."""
    device = choose_device(distributed.device_of(values["device"]))
    processes = distributed.join(device)
    precision = choose_precision(values["precision"], device)
    if values["cuda_graphs"] and device.type != "cuda":
        raise InputError(f"cuda_graphs=true: expected a CUDA device, this run is on {device}")
    set_flags(precision, deterministic=values["deterministic"])
    dataset = instantiated("dataset", without(values["dataset"], "label_noise", "validation"))
    record = recorded(values, precision=precision, fingerprint=dataset.fingerprint, processes=processes.count)
    folder = results.run_folder(values["results_dir"], record)
    if processes.from_first(processes.is_first and not values["force"] and already_finished(folder)):
        if processes.is_first and leftovers(folder):
            with only_writer(folder, wait=False, stop=stop) as alone:
                remove(leftovers(folder) if alone else [])
        return
    parts = build(values, precision, dataset, device, processes)
    if values["checkpoint"]["predictor"] and parts.collector.is_ensemble:
        raise InputError(f"checkpoint.predictor=true: {record['method']} reports an ensemble, which is not one network")
    if not processes.is_first:
        if processes.from_first(False):
            train(parts, values, record, folder, stop, None)
        return
    with only_writer(folder, wait=values["wait"], stop=stop) as alone:
        if not alone:
            print(f"another process is on {folder}: left to it (wait=true waits for it to end)")
        if processes.from_first(alone and not already_finished(folder, alone=True, force=values["force"])):
            with Heartbeat(folder, record, device=device_name(device)) as life:
                train(parts, values, record, folder, stop, life)


def already_finished(folder: Path, *, alone: bool = False, force: bool = False) -> bool:
    """Whether `folder` holds a finished result, which is then shown, or set aside with `force`.

    A result that cannot be trusted is set aside too, which is said, by the process that holds the folder `alone`.
    """
    try:
        result = results.read(folder)
    except ValueError as error:
        if not alone:
            return False
        log.warning("%s: %s; it is set aside", folder / "result.json", error)
        results.set_aside(folder)
        return False
    if result is None or result["state"] != "finished":
        return False
    if force:
        results.set_aside(folder)
        return False
    print(f"already finished: {folder} (force=true runs it anew)\n{results.summary(result)}")
    return True


def train(
    parts: Parts,
    values: dict[str, Any],
    record: dict[str, Any],
    folder: Path,
    stop: Stop,
    life: Heartbeat | None,
) -> None:
    """Train in a folder that is this run's alone, from its newest checkpoint if it has one, and write the result. Only
    the first of several processes reads and writes there, and it alone gives a sign of `life`.

    Raises Interrupted and RunFailed; both leave a result that says so.
    """
    identity = identity_of(record)
    first = parts.processes.is_first
    if first:
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(values))
        (folder / "error.txt").unlink(missing_ok=True)
        remove(unfinished(folder))
        link_output(folder)
    training = Training(parts, stop=stop, reporter=reporter())
    state = checkpoint.load(folder, identity=identity, device=parts.device) if first else None
    state = parts.processes.from_first(state, parts.device)
    if state is not None:
        training.load_state_dict(state)
    if life is not None:
        life.follow(training.standing)

    def save() -> None:
        training.check_finite()
        state = training.state_dict()
        if first:
            checkpoint.save(folder, state, identity=identity, step=training.progress.step)

    try:
        print(opening(parts, values, record, folder), end="", flush=True)
        training.run(save, minutes=values["checkpoint"]["minutes"])
    except (Interrupted, BrokenPipeError):
        conclude(folder, training, record, "interrupted")
        raise
    except Exception as error:
        if not first:
            raise
        reason = told(error, folder)
        conclude(folder, training, record, "failed", reason)
        raise RunFailed(reason) from error
    if values["checkpoint"]["predictor"]:
        network = training.network()
        if first:
            predictor.save(folder, network, classes=parts.data.num_classes, identity=identity)
    result = conclude(folder, training, record, "finished")
    if first:
        remove(checkpoint.files(folder))
        print(f"finished: {folder}\n{results.summary(result)}", flush=True)


def opening(parts: Parts, values: dict[str, Any], record: dict[str, Any], folder: Path) -> str:
    """The lines that say which run this is, where its files are and what was decided for it."""
    which = f"{record['method']}, {record['model']['name']}, {record['dataset']['name']}, seed {record['seed']}"
    autos = [f"{key}=auto: {choice}" for key, choice in parts.settings.items() if values.get(key) == "auto"]
    device = "GPU" if parts.device.type == "cuda" else "CPU"
    return f"{which}: {folder}\n" + (f"{', '.join(autos)} on this {device}\n" if autos else "")


def told(error: Exception, folder: Path) -> str:
    """Why a run failed, in a line; the traceback of what nobody foresaw goes to error.txt."""
    if isinstance(error, RunFailed):
        return str(error)
    (folder / "error.txt").write_text(traceback.format_exc())
    return f"{type(error).__name__}: {error} (see {folder / 'error.txt'})"


def unfinished(folder: Path) -> list[Path]:
    """What processes that died while they wrote a file have left; to be called by the one that holds the folder."""
    return list(folder.glob(".*.tmp"))


def leftovers(folder: Path) -> list[Path]:
    """What a process that died right after writing its finished result has left."""
    return [*checkpoint.files(folder), *folder.glob(heartbeat.NAME), *unfinished(folder)]


def remove(files: Iterable[Path]) -> None:
    """Remove files that may already be gone."""
    for file in files:
        file.unlink(missing_ok=True)


def link_output(folder: Path) -> None:
    """Where a launcher has sent what the run prints to a file, lay a link to it, output.txt, into the run's folder."""
    link = folder / "output.txt"
    link.unlink(missing_ok=True)
    if "BROADOPT_OUTPUT" in os.environ:
        link.symlink_to(os.path.relpath(os.environ["BROADOPT_OUTPUT"], folder))


def conclude(
    folder: Path, training: Training, record: dict[str, Any], state: str, failure: str | None = None
) -> dict[str, Any]:
    """Write the history and then the result of a run that has come to its end or to a halt; its first process does."""
    progress, device = training.progress, training.parts.device
    result = {
        "schema": results.SCHEMA,
        "identity": identity_of(record),
        "semantics": SEMANTICS,
        "state": state,
        **{key: record[key]["name"] for key in ("dataset", "model")},
        **{key: record[key] for key in ("method", "protocol", "seed")},
        "config": record,
        "epochs": training.epochs,
        "budget": record["budget"],
        "metrics": results.metrics(progress.history, progress.collected),
        "cost": {
            "train_seconds": progress.train_seconds,
            "images_per_second": training.images_per_second,
            "gradient_evaluations": progress.gradient_evaluations,
            "peak_memory_bytes": peak_memory(device),
        },
        "environment": environment(device, training.parts.settings),
    }
    if failure is not None:
        result["failure"] = {"reason": failure, **training.where()}
    if training.parts.processes.is_first:
        results.write_history(folder, progress.history)
        results.write(folder, result)
    return result
