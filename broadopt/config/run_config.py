"""One run, typed. The recipe decides the result and has the identity; the execution says how it is carried out."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

from broadopt.config.identity import AS_WITHOUT, identity_of, recorded
from broadopt.config.own_code import own_code
from broadopt.config.rules import check_together, checked
from broadopt.errors import InputError, nearest

Node = Mapping[str, Any]
"""An open node: `_target_`, the public name of what is built, and its arguments. Only the target knows its keys."""

KINDS_OF_NOISE = ("symmetric", "asymmetric")
"""Label noise that is drawn by a run's seed; any other value of dataset.noise is a file of labels."""

PUBLISHED = "published"
"""As the fingerprint of a data set that is not read yet: it has to be the published one."""

LOCATION = ("data_dir", "path", "verify")
"""Keys of a data set's target that locate it; what it contains is recorded as its fingerprint."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """The images of a run."""

    name: str
    label_noise: float
    """Share of the training labels that are replaced by another class."""
    noise: str = KINDS_OF_NOISE[0]
    """How they are: by any other class, by the one that is taken for it, or all of them by those of a file."""
    validation: int
    """Training images that are held out and evaluated apart from the test set."""
    target: Node
    """What reads the data set, and where it lies."""
    fingerprint: str | None = None
    """Of the data that are really used; None where they are the published ones, or not read yet."""

    @classmethod
    def of(cls, node: Node) -> "DatasetConfig":
        """That of a config's node."""
        target = dict(node)
        own = {key: target.pop(key) for key in GROUPS["dataset"]}
        # A config.yaml of before has no such key, nor a recorded config where it is this one.
        noise = target.pop("noise", KINDS_OF_NOISE[0])
        return cls(**own, noise=noise, target=target)

    @property
    def reader(self) -> Node:
        """The node that reads the data set: its target takes the name as well."""
        return {"name": self.name, **self.target}

    @property
    def source(self) -> str:
        """The same for two data sets that are read from the same place."""
        return repr((self.reader, self.noise))

    def values(self) -> dict[str, Any]:
        """The plain values of the config's node."""
        own = {"name": self.name, "label_noise": self.label_noise, "noise": self.noise, "validation": self.validation}
        return {**own, **self.target}

    def record(self) -> dict[str, Any]:
        """The same as it is recorded: a file of labels is known by the fingerprint, wherever it lies; where no label is
        replaced there is one kind of noise.
        """
        kept = {key: value for key, value in self.values().items() if key not in LOCATION}
        noise = "file"
        if self.noise in KINDS_OF_NOISE:
            noise = self.noise if self.label_noise else KINDS_OF_NOISE[0]
        return kept | {"noise": noise, "fingerprint": self.fingerprint}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network of a run."""

    name: str
    target: Node

    @classmethod
    def of(cls, node: Node) -> "ModelConfig":
        """That of a config's node."""
        return cls(name=node["name"], target={key: value for key, value in node.items() if key != "name"})

    def values(self) -> dict[str, Any]:
        """The plain values of the config's node."""
        return {"name": self.name, **self.target}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides a run's result. Every field is part of the identity."""

    seed: int
    """0 to 2^63 - 1; every random draw comes from it."""
    budget: float
    """Epochs; every milestone of a schedule and of a collector is a fraction of it."""
    batch_size: int
    """Images of one step, over all processes."""
    lr: float
    """Learning rate at the start; the schedule makes it that of each step."""
    momentum: float
    nesterov: bool
    weight_decay: float
    """On all parameters, added to the gradient of each update."""
    label_smoothing: float
    evaluate_every: int
    """Epochs between evaluations of the plain weights; `best` is the best of these."""
    precision: str
    """fp32, tf32 or bf16; `auto` until the device is known."""
    augmentation: Node
    dataset: DatasetConfig
    model: ModelConfig
    method: str
    """Name of the method, or `step+collector`."""
    schedule: Node
    protocol: str
    step: Node
    collect: Node
    optimizer: Node = field(default_factory=lambda: dict(AS_WITHOUT["optimizer"]))
    """The optimizer below the step; lr, momentum, nesterov and weight_decay are handed to it where it takes them."""
    clip: float | None = None
    """Bound on the 2-norm of the whole gradient at each update; None for none."""
    processes: int = 1
    """Processes that share each batch: BN normalises the share of each."""
    code: Mapping[str, str] = field(default_factory=dict)
    """Modules of the user's own that the targets come from, with a hash of their source."""

    def decided(self, *, precision: str, fingerprint: str | None, processes: int = 1) -> "Recipe":
        """The recipe with what only the machine and the data on it decide."""
        dataset = replace(self.dataset, fingerprint=fingerprint)
        return replace(self, precision=precision, dataset=dataset, processes=processes)

    def values(self) -> dict[str, Any]:
        """The plain nested values of a config, those of the execution apart."""
        plain = {key: getattr(self, key) for key in RECIPE}
        return plain | {"dataset": self.dataset.values(), "model": self.model.values()}

    def record(self) -> dict[str, Any]:
        """The recorded config, as result.json has it and as it is hashed: plain nested values, in a fixed order."""
        values = self.values() | {"dataset": self.dataset.record()}
        found: dict[str, Any] = {"processes": self.processes} if self.processes > 1 else {}
        found |= {"code": dict(self.code)} if self.code else {}
        return recorded(values) | found

    @property
    def identity(self) -> str:
        """SHA-256 (64 hex digits) of the recorded config and of the semantics version."""
        return identity_of(self.record())

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Recipe":
        """The recipe of a recorded config. Raises ValueError where it has not the keys of one, as that of a broadopt to
        come may not.
        """
        _check_record(record)
        node = dict(record["dataset"])
        fingerprint = node.pop("fingerprint")
        dataset = replace(DatasetConfig.of(node), fingerprint=fingerprint)
        return cls(**{**record, "dataset": dataset, "model": ModelConfig.of(record["model"])})

    def __str__(self) -> str:
        return f"{self.method}, {self.model.name}, {self.dataset.name}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run saves its state, and what it leaves at its end."""

    minutes: float
    """Between two checkpoints; 0 saves after every step."""
    predictor: bool
    """Whether the network that the run reports is kept."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run is carried out. No field is part of the identity; they change a result by the rounding of float
    operations at most, and dropout in feature maps by another draw of the same kind.
    """

    device: str
    """auto, cpu, cuda or cuda:N."""
    memory_format: str
    """auto, channels_last or contiguous."""
    compile: bool
    graphs: str
    """auto, true or false: whether steps are recorded as a CUDA graph; auto: where that is sure to work."""
    deterministic: bool
    data_dir: str
    results_dir: str
    force: bool
    """Run a finished run anew; the old result is kept beside the new one, its predictor and snapshots are not."""
    wait: bool
    """Wait where another process is on the same run."""
    plan: bool
    """Show the recipe and its cost instead of training."""
    tracker: Sequence[str]
    """Trackers that are sent the run's history while it trains."""
    objective: str
    """What the run returns to a sweeper that chooses runs by their results; `auto` is decided by RunConfig."""
    keep: str
    """none, or snapshots: the weights in the course of the training are kept beside its result."""
    trunk: str
    """none, or share: the run begins where another has left a state that it would come to itself, and leaves its own
    for others."""
    checkpoint: CheckpointConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: `RunConfig.of` is the only place where one is made from plain values."""

    recipe: Recipe
    execution: Execution

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "RunConfig":
        """The run of plain nested values, as a resolved config or a config.yaml has them.

        Raises InputError, in one line, for a key that is missing or unknown, a group that is none, and a value that
        breaks its rule.
        """
        _check_shape(values)
        values = checked(values)
        if values["nesterov"] and values["momentum"] == 0:
            raise InputError("nesterov=true: expected momentum > 0 with it, or nesterov=false")
        if values["objective"].startswith("validation") and not values["dataset"]["validation"]:
            raise InputError(f"objective={values['objective']}: expected dataset.validation=5000, or as many, with it")
        check_together(values)
        dataset = DatasetConfig.of(values["dataset"])
        if dataset.noise not in KINDS_OF_NOISE and dataset.label_noise:
            raise InputError(
                f"dataset.label_noise={dataset.label_noise:g}: expected 0 with dataset.noise={dataset.noise}, a file "
                "whose labels are taken as they are"
            )
        code = own_code([values[key] for key in GROUPS])
        values |= {"dataset": dataset, "model": ModelConfig.of(values["model"])}
        values["checkpoint"] = CheckpointConfig(**values["checkpoint"])
        recipe, execution = ({key: values[key] for key in keys} for keys in (RECIPE, EXECUTION))
        return cls(recipe=Recipe(**recipe, code=code), execution=Execution(**execution))

    @property
    def objective(self) -> str:
        """`validation_accuracy`, `test_nll`, ...: of `auto` the accuracy on validation images where there are any."""
        if self.execution.objective == "auto":
            return f"{'validation' if self.recipe.dataset.validation else 'test'}_accuracy"
        return self.execution.objective

    def values(self) -> dict[str, Any]:
        """The plain nested values that `of` takes, as they stand in config.yaml."""
        return self.recipe.values() | asdict(self.execution)


RECIPE = tuple(field.name for field in fields(Recipe) if field.name not in ("processes", "code"))
"""Keys of a config that decide a result; number of processes and own code are found, not given."""

EXECUTION = tuple(field.name for field in fields(Execution))
"""Keys of a config that are no part of an identity."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "dataset": ("name", "label_noise", "validation"),
    "model": ("name",),
    "augmentation": (),
    "schedule": (),
    "step": (),
    "collect": (),
    "optimizer": (),
    "checkpoint": tuple(field.name for field in fields(CheckpointConfig)),
}
"""Keys with keys of their own, and which of these each has to have."""


def _check_record(record: Mapping[str, Any]) -> None:
    """Raise ValueError unless a recorded config has the keys of a recipe and no others."""
    known = {field.name: field.default is MISSING and field.default_factory is MISSING for field in fields(Recipe)}
    for key in record:
        if key not in known:
            raise ValueError(f"its config has {key}, which is no key of a recipe here")
    needed = {"": [key for key, is_needed in known.items() if is_needed]}
    needed |= {"dataset.": [*GROUPS["dataset"], "fingerprint"], "model.": [*GROUPS["model"]]}
    for group, keys in needed.items():
        for key in keys:
            if key not in (record[group[:-1]] if group else record):
                raise ValueError(f"its config is without {group}{key}")


def _check_shape(values: Mapping[str, Any]) -> None:
    """Raise InputError unless `values` has the keys of a run and no others, and each group is one."""
    keys = (*RECIPE, *EXECUTION)
    for key in map(str, values):
        if key not in keys:
            raise InputError(f"unknown key {key}{nearest(key, keys)}")
    for key in keys:
        if key not in values:
            raise InputError(f"{key} is missing")
    for group, own in GROUPS.items():
        node = values[group]
        if not isinstance(node, Mapping):
            raise InputError(f"{group}={node}: expected the group's own keys, {group}.KEY=VALUE")
        for name in own:
            if name not in node:
                raise InputError(f"{group}.{name} is missing")
