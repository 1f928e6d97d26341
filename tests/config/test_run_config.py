"""The typed run: built from plain values in one place, checked there, and the same values again on the way out."""

import json
import re
import site
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from broadopt.analysis.comparing.keys import ABSENT, completed, flat
from broadopt.analysis.tables.match import differences
from broadopt.config.compose import compose, recipe_of, run_config
from broadopt.config.identity import AS_WITHOUT, MODULES, identity_of, importable, public
from broadopt.config.own_code import own_code
from broadopt.config.run_config import EXECUTION, RECIPE, Recipe, RunConfig
from broadopt.config.shipped import config_dir
from broadopt.errors import InputError
from broadopt.runs.repeat import LATER, repeated

SAM = ("experiment=quickstart", "method=sam", "collect=swa", "dataset.label_noise=0.2", "step.chunk=8")


def values() -> dict[str, Any]:
    return run_config(compose(SAM)).values()


def test_a_run_is_the_same_after_a_round_trip_through_its_plain_values() -> None:
    run = run_config(compose(SAM))
    assert RunConfig.of(run.values()) == run
    assert RunConfig.of(yaml.safe_load(yaml.safe_dump(run.values()))) == run
    assert set(run.values()) == {*RECIPE, *EXECUTION}


def test_a_recipe_is_the_same_after_a_round_trip_through_its_record() -> None:
    recipe = run_config(compose(SAM)).recipe.decided(precision="bf16", fingerprint="sha256:1", processes=2)
    assert Recipe.of_record(recipe.record()).record() == recipe.record()
    assert Recipe.of_record(recipe.record()).identity == recipe.identity == identity_of(recipe.record())
    assert recipe.record()["processes"] == 2


def test_infinity_comes_back_from_a_config_that_is_kept() -> None:
    run = run_config(compose(["experiment=quickstart", "method=sam", "step.p=inf"]))
    assert RunConfig.of(yaml.safe_load(yaml.safe_dump(run.values()))) == run


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("+step.limit=inf", "step.limit=inf"),
        ("+collect.limits=[1,{low:-inf}]", "collect.limits[1].low=-inf"),
        ("+augmentation.gain=nan", "augmentation.gain=nan"),
    ],
)
def test_what_no_result_can_hold_is_refused_before_anything_is_trained(given: str, words: str) -> None:
    """As the argument of a user's own code, of which no rule knows what it has to be."""
    with pytest.raises(InputError) as refused:
        run_config(compose([*SAM, given]))
    assert str(refused.value) == f"{words}: expected a finite number, which a result can hold"


def test_where_no_label_is_replaced_there_is_one_kind_of_noise() -> None:
    words = ("method=sgd", "dataset=cifar10")
    clean, named, noisy = (
        run_config(compose([*words, *more])).recipe.identity
        for more in ((), ("dataset.noise=asymmetric",), ("dataset.noise=asymmetric", "dataset.label_noise=0.2"))
    )
    assert clean == named != noisy


def test_a_config_of_a_former_version_is_the_same_run(tmp_path: Path) -> None:
    run, former = run_config(compose(SAM)), values()
    for key, first in {**AS_WITHOUT, **LATER}.items():
        group, _, leaf = key.rpartition(".")
        node = former[group] if group else former
        if node.get(leaf, first) in (first, []):  # a tracker of none is an empty list
            node.pop(leaf, None)
    assert not {"optimizer", "clip", "tracker"} & former.keys()
    assert "from" not in former["step"]
    assert "chunk" in former["step"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(former))
    assert repeated([f"repeat={tmp_path}"]).run.recipe.record() == run.recipe.record()


OF_OWN_CODE = [key for key in AS_WITHOUT if "." in key and not key.startswith("dataset.")]


@pytest.mark.parametrize("key", OF_OWN_CODE)
def test_a_key_of_own_code_is_recorded_at_every_value(key: str) -> None:
    """Only broadopt's own code is known to compute at AS_WITHOUT's value what it computes without the key."""
    group, _, leaf = key.partition(".")
    recipe = run_config(compose(SAM)).recipe

    def record(target: str, *given: Any) -> dict[str, Any]:
        own = {group: {"_target_": target} | dict.fromkeys([leaf][: len(given)], *given)}
        node = own[group]
        if group == "model":
            return replace(recipe, model=replace(recipe.model, target=node)).record()
        return replace(recipe, **own).record()

    mine, without = record("mine.Part", AS_WITHOUT[key]), record("mine.Part")
    assert mine[group][leaf] == AS_WITHOUT[key]
    assert leaf not in without[group]
    assert identity_of(mine) != identity_of(without)
    assert Recipe.of_record(mine).record() == mine
    (said,) = differences(without, mine)
    assert said.startswith(f"{key} ")
    assert said.endswith(" instead of nothing")
    assert completed([flat(mine), flat(without)])[1].get(key, ABSENT) is ABSENT
    ours = "broadopt.methods.step.Plain"
    assert record(ours, AS_WITHOUT[key]) == record(ours)
    assert differences(record(ours), mine | {group: mine[group] | {"_target_": ours}}) == []


def test_a_run_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        run_config(compose(SAM)).recipe.seed = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budgt": 3}, 'unknown key budgt; did you mean "budget"?'),
        ({"dataset": 5}, "dataset=5: expected the group's own keys, dataset.KEY=VALUE"),
        ({"checkpoint": {"minutes": 1.0}}, "checkpoint.predictor is missing"),
        ({"model": {}}, "model.name is missing"),
        ({"seed": "1"}, 'seed="1": expected a whole number from 0 to 2^63 - 1'),
    ],
)
def test_values_that_make_no_run_are_refused_in_a_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        RunConfig.of(values() | change)
    assert str(refused.value) == said


def test_a_protocol_may_have_values_for_another_tail_or_shape_than_the_chosen_one() -> None:
    """Its values for replay and for the decay stand in a run that takes neither; typed, they would be refused."""
    row = ("experiment=table1/shakeshake26_2x64d_cifar10", "method=swa", "schedule.high=0.05")
    constant = run_config(compose([*row, "schedule.tail=constant"])).recipe.schedule
    assert (constant["tail"], constant["replay_from"]) == ("constant", 8 / 9)
    with pytest.raises(InputError, match=r"^schedule\.high=0\.05: schedule\.tail=replay has no use for it; expected "):
        run_config(compose(row))
    steps = run_config(compose(["method=swa", "schedule.shape=steps"])).recipe.schedule
    assert (steps["shape"], steps["decay_to"]) == ("steps", 0.05)


def test_a_stored_run_may_have_values_that_change_nothing(tmp_path: Path) -> None:
    stored = values()
    stored["schedule"] |= {"low": 0.001, "replay_from": 0.5}
    stored["model"] |= {"num_classes": 20}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    recipe = repeated([f"repeat={tmp_path}"]).run.recipe
    assert (recipe.schedule["low"], recipe.model.target["num_classes"]) == (0.001, 20)


@pytest.mark.parametrize("key", ["lr", "results_dir", "step"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(InputError, match=f"^{key} is missing$"):
        RunConfig.of({name: value for name, value in values().items() if name != key})


OF_OTHERS = [
    ("optimizer._target_=torch.optim.Adafactor", "optimizer.eps=[null,0.001]"),
    ("optimizer._target_=mine.Optimizer", "optimizer.betas=[0.9,0.99,0.999]"),
    ("step._target_=mine.Step", "step.noise=0.1"),
    ("step._target_=mine.Step", "step.layers=[conv1]"),
    ("collect._target_=mine.Collector", "collect.every=0.5"),
    ("schedule._target_=mine.Schedule", "schedule.high=[0.1,0.2]"),
]


@pytest.mark.parametrize(("target", "given"), OF_OTHERS)
def test_a_key_of_code_of_others_may_be_anything(target: str, given: str) -> None:
    run = run_config(compose(["experiment=quickstart", target, f"+{given}"]))
    key, _, value = given.partition("=")
    group, _, leaf = key.partition(".")
    assert run.recipe.record()[group][leaf] == yaml.safe_load(value)
    with pytest.raises(InputError, match=re.escape(f"{key}=")):  # to broadopt's own code it is nothing
        run_config(compose(["experiment=quickstart", f"+{given}"]))


def test_a_schedule_of_ones_own_may_have_any_high_with_another_optimizer() -> None:
    given = ("optimizer=adamw", "schedule._target_=mine.Schedule", "+schedule.high=0.1")
    assert run_config(compose(["experiment=quickstart", *given])).recipe.schedule["high"] == 0.1


def test_a_collector_of_ones_own_beside_another_may_have_any_keys(tmp_path: Path) -> None:
    own = values()
    own["collect"]["also"] = {"mine": {"_target_": "mine.Collector", "every": 0.5}}
    assert RunConfig.of(own).recipe.collect["also"]["mine"]["every"] == 0.5
    own["collect"]["also"]["mine"]["_target_"] = "broadopt.methods.averaging.ema.MovingAverage"
    with pytest.raises(InputError, match=r"^collect\.also\.mine\.every=0\.5: expected a whole number of steps"):
        RunConfig.of(own)


def test_a_key_of_code_of_others_that_fits_is_recorded_as_it_was_ever() -> None:
    own = run_config(compose(["experiment=quickstart", "step._target_=mine.Step", "+step.rho=1", "+step.p=inf"]))
    assert json.dumps(own.recipe.record()["step"]) == '{"_target_": "mine.Step", "rho": 1.0, "p": "inf"}'


def test_values_are_not_changed_by_being_checked() -> None:
    given = values() | {"budget": 3}
    assert type(RunConfig.of(given).recipe.budget) is float
    assert type(given["budget"]) is int


def test_every_target_of_the_configs_has_a_public_name_that_is_recorded_and_a_place_that_imports() -> None:
    from hydra.utils import get_object

    texts = [path.read_text() for path in config_dir().rglob("*.yaml")]
    named = {line.split()[1] for text in texts for line in text.splitlines() if line.strip().startswith("_target_:")}
    targets = {target for target in named if target.startswith("broadopt.")}
    assert len(targets) > 15
    for target in targets:
        assert public(target) == target
        assert public(importable({"_target_": target})["_target_"]) == target
        assert callable(get_object(importable({"_target_": target})["_target_"]))
        assert any(target.startswith(f"{module}.") for module in MODULES)


def test_a_target_named_by_where_its_code_lives_makes_the_same_run() -> None:
    moved = "schedule._target_=broadopt.methods.schedule.Schedule"
    assert recipe_of([*SAM, moved]) == recipe_of(SAM)
    assert recipe_of([*SAM, moved])["schedule"]["_target_"] == "broadopt.schedule.Schedule"


def test_nested_targets_and_those_of_users() -> None:
    node = {"_target_": "own.Step", "inner": [{"_target_": "broadopt.augment.Augmentation", "pad": 4}]}
    assert importable(node) == {
        "_target_": "own.Step",
        "inner": [{"_target_": "broadopt.data.augment.Augmentation", "pad": 4}],
    }
    assert public("own.broadopt.schedule.Schedule") == "own.broadopt.schedule.Schedule"


def test_a_package_installed_for_the_user_alone_is_known_by_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_net").mkdir()
    (tmp_path / "users_net/__init__.py").write_text("class Net: pass\n")
    described = tmp_path / "users_net-1.2.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: users-net\nVersion: 1.2\n")
    (described / "top_level.txt").write_text("users_net\n")
    monkeypatch.setattr(site, "USER_SITE", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    assert own_code({"_target_": "users_net.Net"}) == {"users_net": "users-net 1.2"}
