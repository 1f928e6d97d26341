"""Results as files, without training: recorded configs of real recipes, made-up figures, and broadopt-table on them."""

import contextlib
import io
import sys

import pytest

from broadopt import table
from broadopt.config.compose import recipe_of
from broadopt.config.identity import SEMANTICS, identity_of
from broadopt.runs import history as histories
from broadopt.runs import results

RESNET20 = "experiment=table3/resnet20"
VGG16 = "experiment=table1/vgg16_cifar100"


def run(*arguments, expect=0):
    """stdout, stderr of `broadopt-table ARGUMENTS`, run in this process."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="ascii"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["broadopt-table", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            table.main()
    assert ended.value.code == expect, err.getvalue()
    out.flush()
    return out.buffer.getvalue().decode("utf-8"), err.getvalue()


def record(*overrides, seed=1, precision="fp32", fingerprint=None):
    recipe = recipe_of(overrides)
    return {
        **recipe,
        "seed": seed,
        "precision": precision,
        "dataset": {**recipe["dataset"], "fingerprint": fingerprint},
    }


def seal(folder, result):
    """Write a result with its checksum, whatever it holds: one that another program has made."""
    (folder / "result.json").write_bytes(results.sealed(result))


def figures(accuracy):
    """Test figures of an accuracy in percent."""
    return {
        "test_accuracy": accuracy,
        "test_nll": round((100 - accuracy) / 20, 4),
        "test_ece": round((100 - accuracy) / 1000, 5),
    }


def hold_out(metrics, accuracy):
    """Put figures on held-out images into the metrics of a result."""
    validation = {"validation_accuracy": accuracy, "validation_nll": 1.0, "validation_ece": 0.1}
    metrics["validation"] = {"last": validation, "best": {"validation_accuracy": accuracy, "epoch": 3}}
    for found in metrics["collected"].values():
        found |= validation | {"validation_accuracy": accuracy + 1}


def store(
    root,
    recorded,
    *,
    last=70.0,
    best=None,
    collected=None,
    held_out=None,
    state="finished",
    history=None,
    device=None,
    cost=None,
):
    """Write the result file of one run; NLL and ECE are made up from the accuracy so that they can be told apart.

    `history`: test accuracy by epoch, for history.csv, None of one that was not evaluated: it has the last and the best
    of a finished run, whose last epoch is evaluated where no other is; `cost` replaces figures of the made-up ones;
    `held_out`: the last accuracy on held-out images, of which what was collected has one more.
    """
    collected = collected or {}
    folder = results.run_folder(root, recorded)
    folder.mkdir(parents=True)
    result = {
        "schema": results.SCHEMA,
        "identity": identity_of(recorded),
        "semantics": SEMANTICS,
        "state": state,
        "dataset": recorded["dataset"]["name"],
        "model": recorded["model"]["name"],
        "method": recorded["method"],
        "protocol": recorded["protocol"],
        "seed": recorded["seed"],
        "config": recorded,
        "epochs": recorded["budget"] * max([1.0, *(float(key.split()[-1]) for key in collected)]),
        "budget": recorded["budget"],
        "metrics": {
            "last": figures(last),
            "best": {"test_accuracy": last if best is None else best, "epoch": 3},
            "collected": {key: figures(accuracy) for key, accuracy in collected.items()},
        },
        "cost": {
            "train_seconds": 100.0 + recorded["seed"],
            "images_per_second": 5000.0 + recorded["seed"],
            "gradient_evaluations": 10,
            "peak_memory_bytes": 0,
            **(cost or {}),
        },
        "environment": {"broadopt": "0.1.0", "precision": recorded["precision"]},
    }
    if held_out is not None:
        hold_out(result["metrics"], held_out)
    if device is not None:
        result["environment"]["device"] = device
    if history is not None:
        rows = [
            {"epoch": float(epoch), "lr": 0.1, **({} if accuracy is None else figures(accuracy))}
            for epoch, accuracy in history.items()
        ]
        if state == "finished" and not any("test_accuracy" in row for row in rows):
            rows[-1] |= figures(last)
        histories.write(folder, rows)
        if state == "finished":
            result["metrics"] |= histories.metrics(rows, result["metrics"]["collected"])
    seal(folder, result)
    return folder
