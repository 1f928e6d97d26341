"""broadopt-run: from a command line to a result; the only place where the parts of a run are built."""

import logging
import os
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from broadopt import config, results
from broadopt.command_line import expand_glob, options_first
from broadopt.errors import InputError, Interrupted, RunFailed
from broadopt.messages import instantiation_error, one_line

if TYPE_CHECKING:  # torch is imported where a run begins: --help answers without it
    import torch

    from broadopt.datasets import Dataset
    from broadopt.heartbeat import Heartbeat
    from broadopt.preempt import Stop
    from broadopt.train import Parts, Training

log = logging.getLogger("broadopt")


def main() -> None:
    """The entry point of broadopt-run. Exit codes: 0 finished, 1 failed, 2 bad input, 75 interrupted with the state
    saved.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here whole and leave as one line
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on shared cores, threads that spin cost up to ten times
    config.register_resolvers()
    session = Session()
    try:
        sys.argv[1:] = [expand_glob(argument) for argument in options_first(sys.argv[1:])]
        hydra.main(config_path=str(config.config_dir()), config_name="run", version_base="1.3")(session.task)()
    except (Interrupted, KeyboardInterrupt) as signal:  # the latter: before the first run or between two of a sweep
        leave(f"stopped by {str(signal) or 'SIGINT'}: run the same command to go on", 75)
    except BrokenPipeError:  # the reader of the output, head for example, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        line = one_line(error, sys.argv[1:])
        if line is None:
            raise
        leave(line, 2)
    session.conclude()


def leave(line: str, code: int) -> None:
    """Say one line on stderr and exit."""
    print(f"broadopt-run: {line}", file=sys.stderr, flush=True)
    sys.exit(code)


@dataclass
class Session:
    """The runs of one command line: what failed and what was only planned. A failed run does not stop the others of a
    sweep.
    """

    failed: list[tuple[str, InputError | RunFailed]] = field(default_factory=list)
    planned: list[float] = field(default_factory=list)

    def task(self, composed: DictConfig) -> None:
        """One run; Hydra calls it with a composed config."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from broadopt.preempt import Stop

        sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        with Stop() as stop:
            try:
                values = config.plain(composed)
                if values["plan"]:
                    self.planned.append(show_plan(composed, values, overrides, brief=sweep))
                else:
                    execute(values, stop)
            except (InputError, RunFailed) as error:
                self.note(error, overrides, sweep=sweep)
            except BrokenPipeError:
                raise
            except OSError as error:  # the disk is full, or the folder has gone
                self.note(RunFailed(str(error)), overrides, sweep=sweep)
            if sweep:
                stop.check()  # a signal after the last batch of a run still ends the sweep

    def note(self, error: InputError | RunFailed, overrides: list[str], *, sweep: bool) -> None:
        """Keep a failure for the end; said at once as well in a sweep, which goes on."""
        if sweep:
            print(f"broadopt-run: {' '.join(overrides)}: {error}", file=sys.stderr, flush=True)
        self.failed.append((" ".join(overrides) if sweep else "", error))

    def conclude(self) -> None:
        """Sum a planned sweep up; exit where a run failed, naming it."""
        if len(self.planned) > 1:
            from broadopt.plan import petaflops

            print(f"{len(self.planned)} runs, {petaflops(sum(self.planned))}")
        if not self.failed:
            return
        code = 2 if all(isinstance(error, InputError) for _, error in self.failed) else 1
        lines = [f"{overrides}: {error}" if overrides else str(error) for overrides, error in self.failed]
        if not self.failed[0][0]:
            leave(lines[0], code)
        leave("\n  ".join([f"{len(lines)} of the sweep's runs failed:", *lines]), code)


def show_plan(composed: DictConfig, values: dict[str, Any], overrides: list[str], *, brief: bool) -> float:
    """Print what a run would do and cost, in one line where `brief`; returns its floating-point operations."""
    from broadopt import plan

    cost = price(values)
    if brief:
        print(plan.line(values, cost), flush=True)
    else:
        collector, schedule = instantiated("collect", values["collect"]), instantiated("schedule", values["schedule"])
        nodes: Any = OmegaConf.to_container(composed, resolve=False)
        origins = plan.origins(nodes, values, nodes["protocol"]["recipe"], overrides)
        print(plan.page(values, cost, schedule, collector, origins))
    return cost["flops"]


def price(values: dict[str, Any]) -> dict[str, float]:
    """Size and cost of a run, as broadopt.plan.cost has them. Raises InputError where a part of it cannot be made."""
    import torch

    from broadopt import plan
    from broadopt.datasets import size

    classes, images = size(without(values["dataset"], "label_noise", "validation", "fingerprint"))
    with torch.device("meta"):
        model = network(values["model"], classes)
        optimizer = torch.optim.SGD(model.parameters(), lr=values["lr"])
    collector = instantiated("collect", values["collect"])
    passes = instantiated("step", values["step"], model, optimizer).passes
    return plan.cost(values, model, collector, images=images - values["dataset"]["validation"], passes=passes)


def without(node: dict[str, Any], *keys: str) -> dict[str, Any]:
    """`node` less the keys that are not its target's arguments."""
    return {key: value for key, value in node.items() if key not in keys}


def execute(values: dict[str, Any], stop: "Stop") -> None:
    """Carry out one run, or show the result of one that is finished. Raises InputError, RunFailed, Interrupted."""
    from broadopt.device import choose_device, choose_precision, device_name, set_flags
    from broadopt.heartbeat import Heartbeat
    from broadopt.lock import only_writer

    device = choose_device(values["device"])
    precision = choose_precision(values["precision"], device)
    if values["cuda_graphs"] and device.type != "cuda":
        raise InputError(f"cuda_graphs=true: expected a CUDA device, this run is on {device}")
    set_flags(precision, deterministic=values["deterministic"])
    dataset = instantiated("dataset", without(values["dataset"], "label_noise", "validation"))
    record = config.recorded(values, precision=precision, fingerprint=dataset.fingerprint)
    folder = results.run_folder(values["results_dir"], record)
    if not values["force"] and already_finished(folder):
        return
    parts = build(values, precision, dataset, device)
    with only_writer(folder, wait=values["wait"], stop=stop) as alone:
        if not alone:
            print(f"another process is on {folder}: left to it (wait=true waits for it to end)")
        elif not already_finished(folder, force=values["force"]):
            with Heartbeat(folder, record, device=device_name(device)) as heartbeat:
                train(parts, values, record, folder, stop, heartbeat)


def already_finished(folder: Path, *, force: bool = False) -> bool:
    """Whether `folder` holds a finished result, which is then shown, or set aside with `force`.

    A result that cannot be trusted is set aside too, which is said.
    """
    try:
        result = results.read(folder)
    except ValueError as error:
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


def instantiated(group: str, node: dict[str, Any], *arguments: Any, **options: Any) -> Any:
    """What a config node with a `_target_` makes. Raises InputError, in one line, where it cannot be made."""
    if not isinstance(node.get("_target_"), str):
        raise InputError(f"{group}: expected a _target_, the dotted name of what is to be called, among its keys")
    try:
        return instantiate(node, *arguments, _convert_="all", **options)
    except InstantiationException as error:
        raise instantiation_error(error, group, node) from error


def network(node: dict[str, Any], num_classes: int) -> "torch.nn.Module":
    """The network of a config's `model` node. Raises InputError."""
    from torch import nn

    made = instantiated("model", without(node, "name"), num_classes=num_classes)
    if not isinstance(made, nn.Module):
        raise InputError(f"model._target_={node['_target_']}: expected a torch.nn.Module, found {type(made).__name__}")
    return made


def build(values: dict[str, Any], precision: str, dataset: "Dataset", device: "torch.device") -> "Parts":
    """Every part of a run from its checked config. The network's initial weights depend on the seed alone. Raises
    InputError.
    """
    import torch

    from broadopt.data import Data
    from broadopt.device import choose_memory_format
    from broadopt.seeds import derive
    from broadopt.train import Parts

    memory_format = choose_memory_format(values["memory_format"], values["model"]["name"], device)
    data = Data(
        dataset,
        batch_size=values["batch_size"],
        augmentation=instantiated("augmentation", values["augmentation"]),
        seed=values["seed"],
        device=device,
        validation=values["dataset"]["validation"],
        label_noise=values["dataset"]["label_noise"],
        channels_last=memory_format == torch.channels_last,
    )
    torch.manual_seed(derive(values["seed"], "weights"))
    model = network(values["model"], data.num_classes)
    model = model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
    if values["compile"] or values["cuda_graphs"]:
        model.compile(dynamic=False, mode="reduce-overhead" if values["cuda_graphs"] else "default")
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=values["lr"],
        momentum=values["momentum"],
        nesterov=values["nesterov"],
        weight_decay=values["weight_decay"],
        fused=True,
    )
    return Parts(
        model=model,
        step=instantiated("step", values["step"], model, optimizer),
        collector=instantiated("collect", values["collect"]),
        schedule=instantiated("schedule", values["schedule"]),
        data=data,
        seed=values["seed"],
        budget=values["budget"],
        label_smoothing=values["label_smoothing"],
        evaluate_every=values["evaluate_every"],
        precision=precision,
        device=device,
        settings={
            "precision": precision,
            "memory_format": "channels_last" if memory_format == torch.channels_last else "contiguous",
            **{key: values[key] for key in ("compile", "cuda_graphs", "deterministic")},
        },
    )


def train(
    parts: "Parts",
    values: dict[str, Any],
    record: dict[str, Any],
    folder: Path,
    stop: "Stop",
    heartbeat: "Heartbeat",
) -> None:
    """Train in a folder that is this process's alone, from its newest checkpoint if it has one, and write the result.

    Raises Interrupted and RunFailed; both leave a result that says so.
    """
    from broadopt import checkpoint
    from broadopt.progress import reporter
    from broadopt.train import Training

    identity = config.identity(record)
    print(
        f"{record['method']}, {record['model']['name']}, {record['dataset']['name']}, seed {record['seed']}: {folder}",
        flush=True,
    )
    autos = [f"{key}=auto: {choice}" for key, choice in parts.settings.items() if values[key] == "auto"]
    if autos:
        print(f"{', '.join(autos)} on this {'GPU' if parts.device.type == 'cuda' else 'CPU'}", flush=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(values))
    (folder / "error.txt").unlink(missing_ok=True)
    training = Training(parts, stop=stop, reporter=reporter())
    state = checkpoint.load(folder, identity=identity, device=parts.device)
    if state is not None:
        training.load_state_dict(state)
    heartbeat.follow(training.standing)

    def save() -> None:
        training.check_finite()
        checkpoint.save(folder, training.state_dict(), identity=identity, step=training.progress.step)

    try:
        training.run(save, minutes=values["checkpoint"]["minutes"])
    except Interrupted:
        conclude(folder, training, record, "interrupted")
        raise
    except Exception as error:
        if not isinstance(error, RunFailed):
            (folder / "error.txt").write_text(traceback.format_exc())
        reason = (
            str(error)
            if isinstance(error, RunFailed)
            else f"{type(error).__name__}: {error} (see {folder / 'error.txt'})"
        )
        conclude(folder, training, record, "failed", reason)
        raise RunFailed(reason) from error
    result = conclude(folder, training, record, "finished")
    checkpoint.remove(folder)
    print(f"finished: {folder}\n{results.summary(result)}", flush=True)


def conclude(
    folder: Path, training: "Training", record: dict[str, Any], state: str, failure: str | None = None
) -> dict[str, Any]:
    """Write the history and then the result of a run that has come to its end or to a halt."""
    from broadopt.device import environment, peak_memory

    progress, device = training.progress, training.parts.device
    result = {
        "schema": results.SCHEMA,
        "identity": config.identity(record),
        "semantics": config.SEMANTICS,
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
    results.write_history(folder, progress.history)
    results.write(folder, result)
    return result


if __name__ == "__main__":
    main()
