"""What people type from the habit of other programs, and what broadopt has instead."""

import re
from collections.abc import Iterable, Mapping

from broadopt.errors import as_typed, nearest

_LENGTH = "the length of a run is budget, in epochs: budget=200"
_NO_LOADER = "there are no data workers: images stay on the device and are augmented there"
_RESUMED = "a run goes on from its checkpoint by itself: give the same command again"
_DEVICE = "one run is on one device, device=cuda or device=cuda:N; torchrun spreads a run over several"
_PRECISION = "precision=bf16 is mixed precision, and precision=auto takes it where the device has it"
_OPTIMISER = "the optimizer is optimizer=sgd or adamw; what is built on it is the method, method=sam for example"
_TRACKER = "the curves go to a tracker by tracker=tensorboard, wandb, mlflow or trackio, and to history.csv in any case"
_NAMED = "a run is named by its recipe: results/runs/DATASET/MODEL/METHOD/seed1-..."
_RESULTS = "the folder that results go to is results_dir=FOLDER"
_DATA = "the folder of CIFAR is data_dir=FOLDER, that of your own images dataset=image_folder dataset.path=FOLDER"
_WARMUP = "the lr rises over so many budgets: schedule.warmup=0.025 is 5 of 200 epochs"
_SCRATCH = "networks are trained from their initialisation; no weights are loaded"

SENTENCES: Mapping[str, str] = {
    **dict.fromkeys(
        ("epochs", "epoch", "num_epochs", "n_epochs", "max_epochs", "total_epochs", "train_epochs"), _LENGTH
    ),
    **dict.fromkeys(("steps", "max_steps", "num_steps", "iterations", "max_iter", "num_iterations"), _LENGTH),
    **dict.fromkeys(("workers", "num_workers", "n_workers", "loader_workers", "pin_memory", "prefetch"), _NO_LOADER),
    **dict.fromkeys(("resume", "resume_from", "continue", "restart", "load", "ckpt", "checkpoint_path"), _RESUMED),
    **dict.fromkeys(("gpu", "gpus", "gpu_id", "gpu_ids", "num_gpus", "n_gpus", "devices", "cuda", "no_cuda"), _DEVICE),
    **dict.fromkeys(("accelerator", "world_size", "distributed", "ddp"), _DEVICE),
    **dict.fromkeys(("amp", "use_amp", "fp16", "half", "mixed_precision", "autocast", "bf16"), _PRECISION),
    **dict.fromkeys(("optimiser", "optim", "opt", "alg", "algorithm"), _OPTIMISER),
    **dict.fromkeys(("logger", "loggers", "log", "logging", "wandb", "tensorboard", "mlflow", "trackio"), _TRACKER),
    **dict.fromkeys(("name", "run_name", "exp_name", "experiment_name", "run_id", "tag"), _NAMED),
    **dict.fromkeys(("output", "output_dir", "out", "out_dir", "outdir", "save_dir", "save", "results"), _RESULTS),
    **dict.fromkeys(("log_dir", "logdir", "work_dir", "workdir", "exp_dir", "run_dir", "result_dir"), _RESULTS),
    **dict.fromkeys(("data", "root", "data_path", "data_root", "datadir", "dataset_dir", "dataroot", "path"), _DATA),
    **dict.fromkeys(("pretrained", "weights", "init_from", "finetune"), _SCRATCH),
    **dict.fromkeys(("warmup", "warmup_epochs", "warmup_steps", "lr_warmup"), _WARMUP),
    "cuda_graphs": "graphs=auto, true or false says whether steps are recorded as a CUDA graph",
    "num_classes": "the data set decides the number of classes",
    "seeds": "several seeds are a sweep: -m seed=1,2,3",
}
"""Keys for which broadopt has something else, or nothing, and why."""

RENAMED: Mapping[str, str] = {
    **dict.fromkeys(("wd", "decay", "l2"), "weight_decay"),
    **dict.fromkeys(("learning_rate", "base_lr", "init_lr", "initial_lr", "max_lr", "lr0", "eta0"), "lr"),
    **dict.fromkeys(("bs", "batch", "mini_batch", "minibatch_size", "train_batch_size", "b"), "batch_size"),
    **dict.fromkeys(("mom", "beta"), "momentum"),
    **dict.fromkeys(("grad_clip", "clip_grad", "clip_norm", "max_grad_norm", "max_norm", "gradient_clip_val"), "clip"),
    **dict.fromkeys(("smoothing", "ls"), "label_smoothing"),
    **dict.fromkeys(("random_seed", "manual_seed", "rng"), "seed"),
    **dict.fromkeys(("arch", "architecture", "network", "net", "backbone"), "model"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_schedule", "sched"), "schedule"),
    **dict.fromkeys(("eval_every", "eval_freq", "eval_interval", "test_every", "val_every"), "evaluate_every"),
    **dict.fromkeys(("val", "val_size", "val_split", "valid"), "dataset.validation"),
    **dict.fromkeys(("overwrite", "rerun"), "force"),
    **dict.fromkeys(("dry_run", "dryrun", "print_config"), "plan"),
    **dict.fromkeys(("augment", "aug", "transforms", "transform"), "augmentation"),
}
"""Keys that broadopt has by another name."""

_OWN_IMAGES = "; your own images: dataset=image_folder dataset.path=FOLDER"
_IS_BELOW = "; that is an optimizer, and lies below a step: optimizer=adamw, or optimizer._target_=MODULE.CLASS"
_OWN_OPTIMIZER = "; your own, or torch's: optimizer._target_=torch.optim.RMSprop, say"
_OTHER_OPTIMISERS = dict.fromkeys(
    ("adam", "adamw", "rmsprop", "adagrad", "lion", "lamb", "lbfgs", "muon", "asgd"), _IS_BELOW
)
_COLLECTORS = {name: f"; it goes with any step: collect={name}" for name in ("ema", "lawa", "swag")}
CHOICES: Mapping[str, Mapping[str, str]] = {
    "dataset": dict.fromkeys(
        ("imagenet", "tinyimagenet", "imagefolder", "folder", "custom", "mnist", "fashionmnist", "svhn", "stl10"),
        _OWN_IMAGES,
    ),
    "method": {**_OTHER_OPTIMISERS, **_COLLECTORS},
    "step": {**_OTHER_OPTIMISERS, **_COLLECTORS},
    "collect": dict.fromkeys(
        ("average", "mean", "polyak", "ewa", "modelema", "movingaverage"), '; did you mean "ema"?'
    ),
    "optimizer": dict.fromkeys(
        ("rmsprop", "adagrad", "lion", "lamb", "muon", "asgd", "nadam", "radam"), _OWN_OPTIMIZER
    ),
    "hydra/launcher": {
        **dict.fromkeys(("submitit", "submititslurm", "sbatch"), '; did you mean "slurm"?'),
        **dict.fromkeys(("joblib", "submititlocal", "multiprocessing"), '; did you mean "local"?'),
    },
    "hydra/sweeper": {
        name: f"; it comes with pip install hydra-{name}-sweeper" for name in ("optuna", "ax", "nevergrad")
    },
}
"""Choices of a group that broadopt does not have, as `nearest` compares them."""

VALUES: Mapping[str, Mapping[str, str]] = {
    "device": {**dict.fromkeys(("gpu", "nvidia", "rocm", "hip"), "cuda"), "cuda0": "cuda:0", "cuda1": "cuda:1"},
    "precision": {
        **dict.fromkeys(("fp16", "float16", "16", "half", "amp", "mixed", "bfloat16", "bf16mixed"), "bf16"),
        **dict.fromkeys(("float32", "32", "single", "full", "float"), "fp32"),
    },
    "tracker": {
        **dict.fromkeys(("tb", "tboard"), "tensorboard"),
        **dict.fromkeys(("wb", "weightsandbiases"), "wandb"),
        **dict.fromkeys(("none", "null", "no", "off", "false"), "none"),
    },
    "memory_format": {"nhwc": "channels_last", "nchw": "contiguous"},
}
"""Values of a key by other names."""

FLAGS: Mapping[str, str] = {
    **dict.fromkeys(("yes", "on", "1", "y", "t"), "true"),
    **dict.fromkeys(("no", "off", "0", "n", "f"), "false"),
}


def about_key(key: str, known: Iterable[str]) -> str:
    """What follows "unknown key KEY": the nearest of the `known` keys, what broadopt has instead, or nothing."""
    known, leaf = list(known), key.rpartition(".")[2]
    return nearest(leaf, known, cutoff=1) or from_habit(leaf) or nearest(key, known)


def from_habit(key: str) -> str:
    """What broadopt has instead of the `key` of other programs; nothing for one that nobody expects."""
    word = as_typed(key)
    for name, sentence in SENTENCES.items():
        if as_typed(name) == word:
            return f": {sentence}"
    return next((f'; did you mean "{to}"?' for name, to in RENAMED.items() if as_typed(name) == word), "")


def about_choice(group: str, name: str, choices: Iterable[str]) -> str:
    """What follows the list of a group's choices where `name` is none of them."""
    choices = list(choices)
    if inside := [choice for choice in choices if choice.startswith(f"{name.rstrip('*').rstrip('/')}/")]:
        folder = inside[0].rpartition("/")[0]
        return f"; all {len(inside)} of {folder}: -m '{group}=glob({folder}/*)'"
    if "+" in name and group in ("collect", "method"):
        return _about_several(group, name, choices)
    word = as_typed(name)
    if hint := CHOICES.get(group, {}).get(word):
        return hint
    if group == "dataset" and ("/" in name or name.startswith((".", "~"))):
        return _OWN_IMAGES
    return nearest(re.sub("^wide-?_?resnet-?_?", "wrn", name, flags=re.I) if group == "model" else name, choices)


def _about_several(group: str, name: str, choices: Iterable[str]) -> str:
    """What is wrong with a choice of several collectors, `swa+emma`, or with one of a method and a collector."""
    first, *others = name.split("+")
    if group == "method":
        return f"; a step and what it is averaged by are two choices: method={first} collect={'+'.join(others)}"
    for part in (first, *others):
        if part not in choices:
            return f"; of several, {part or 'an empty name'} is none of these{nearest(part, choices)}"
    wrong = "none stands alone" if "none" in (first, *others) else "each is given once"
    return f"; of several, {wrong}"


def about_value(key: str, value: object, names: Iterable[str]) -> str:
    """What follows "expected ..." where a key's `value` breaks its rule; `names` are the values that it may have."""
    if isinstance(value, list):
        return f"; several values are a sweep, -m {key}={','.join(map(str, value))}" if value else ""
    if key == "device" and isinstance(value, int) and not isinstance(value, bool):
        return f'; did you mean "cuda:{value}"?'
    if isinstance(value, str) and (ends := re.fullmatch(r"(\d+)(?:\.\.\.?|-|:)(\d+)", value)):
        return f"; a range of values is a sweep, -m '{key}=range({ends[1]},{int(ends[2]) + 1})'"
    table = FLAGS if tuple(names) == ("true", "false") else VALUES.get(key, {})
    if (word := as_typed(str(value))) in table:
        return f'; did you mean "{table[word]}"?'
    return nearest(value, names) if isinstance(value, str) else ""
