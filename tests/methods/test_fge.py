"""FGE: the mean of the members' softmax outputs, and when members are taken.

The oracles: the mean of the outputs of networks kept apart, the paper's counts, and a training without an ensemble.
"""

import copy
import io

import pytest
import torch
from formulas import SmallNet, batches
from hypothesis import given
from hypothesis import strategies as st
from short_training import assert_same_course, run
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.methods.collect import Nothing, Predict
from broadopt.methods.fge import SnapshotEnsemble

IMAGES, HELD_OUT = batches(1)[0][0], batches(2)[1][0]


def log_softmax_of(model: nn.Module) -> dict[str, Tensor]:
    with torch.no_grad():
        return {"test": model(IMAGES).log_softmax(1), "validation": model(HELD_OUT).log_softmax(1)}


def no_statistics(model: nn.Module) -> None:
    raise AssertionError("members use their own running statistics")


def collected(ensemble: SnapshotEnsemble, seeds: range) -> list[nn.Module]:
    models = [SmallNet(seed=seed).eval() for seed in seeds]
    for model in models:
        ensemble.collect(model, log_softmax_of)
    return models


def predicted(ensemble: SnapshotEnsemble) -> dict[str, Tensor]:
    return ensemble.predict(SmallNet(seed=99), log_softmax_of, no_statistics)


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_prediction_is_the_mean_of_the_members_softmax_outputs(count: int) -> None:
    ensemble = SnapshotEnsemble(start=0.8, cycle=0.01)
    models = collected(ensemble, range(count))
    outputs = predicted(ensemble)
    assert ensemble.members == count
    assert outputs.keys() == {"test", "validation"}
    for split, images in (("test", IMAGES), ("validation", HELD_OUT)):
        expected = sum(model(images).softmax(1) for model in models) / count
        assert outputs[split].dtype == torch.float64
        torch.testing.assert_close(outputs[split].exp(), expected, rtol=1e-13, atol=1e-15)


def test_prediction_is_not_the_mean_of_logits_or_of_weights() -> None:
    ensemble = SnapshotEnsemble(start=0.8, cycle=0.01)
    models = collected(ensemble, range(3))
    mean_logits = (sum(model(IMAGES) for model in models) / 3).softmax(1)
    assert (predicted(ensemble)["test"].exp() - mean_logits).abs().max() > 1e-3


def test_probabilities_too_small_for_float64_keep_their_logarithm() -> None:
    ensemble = SnapshotEnsemble(start=0.8, cycle=0.01)
    for low in (-1000.0, -1001.0):
        ensemble.collect(nn.Identity(), lambda _, low=low: {"test": torch.tensor([[0.0, low]], dtype=torch.float64)})
    expected = -1000 + torch.tensor(1 + torch.e**-1, dtype=torch.float64).log() - torch.tensor(2.0).double().log()
    assert predicted(ensemble)["test"].tolist()[0] == pytest.approx([0.0, expected.item()], rel=1e-15, abs=1e-15)


def test_predicting_changes_nothing() -> None:
    ensemble = SnapshotEnsemble(start=0.8, cycle=0.01)
    collected(ensemble, range(2))
    first, second = predicted(ensemble), predicted(ensemble)
    assert all(torch.equal(first[split], second[split]) for split in first)
    models = collected(ensemble, range(2, 3))
    expected = sum(SmallNet(seed=seed).eval()(IMAGES).softmax(1) for seed in range(3)) / 3
    torch.testing.assert_close(predicted(ensemble)["test"].exp(), expected, rtol=1e-13, atol=1e-15)
    assert len(models) == 1


def test_collecting_leaves_the_network_and_the_predictions_as_they_are() -> None:
    model = SmallNet()
    state = copy.deepcopy(model.state_dict())
    outputs = log_softmax_of(model.eval())
    before = {split: output.clone() for split, output in outputs.items()}
    ensemble = SnapshotEnsemble(start=0.8, cycle=0.01)
    for _ in range(3):
        ensemble.collect(model, lambda _: outputs)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(outputs[split], before[split]) for split in outputs)


def test_200_epochs_have_20_members_in_the_middles_of_cycles_of_2_epochs() -> None:
    ensemble = SnapshotEnsemble(start=0.8, cycle=0.01)
    assert ensemble.collection_points(200) == pytest.approx(list(range(161, 201, 2)), abs=1e-9)
    assert ensemble.evaluation_points(200) == {"1": 200}


def test_start_is_no_member() -> None:
    assert min(SnapshotEnsemble(start=0.8, cycle=0.01).collection_points(200)) == pytest.approx(161, abs=1e-9)
    assert SnapshotEnsemble(start=0.0, cycle=0.5).collection_points(8) == [2, 6]


@given(cycles=st.integers(1, 60), start=st.sampled_from([0.0, 0.25, 0.5, 0.8, 0.9]), budget=st.integers(1, 2000))
def test_cycles_fill_the_rest_of_any_budget(cycles: int, start: float, budget: int) -> None:
    cycle = (1 - start) / cycles
    moments = SnapshotEnsemble(start=start, cycle=cycle).collection_points(budget)
    expected = [budget * (start + (1 - start) * (2 * k + 1) / (2 * cycles)) for k in range(cycles)]
    assert moments == pytest.approx(expected, rel=1e-12)


def test_incomplete_last_cycle_has_no_member() -> None:
    assert SnapshotEnsemble(start=0.5, cycle=0.2).collection_points(10) == pytest.approx([6, 8], rel=1e-12)


class Recording(SnapshotEnsemble):
    """Also keeps a copy of each member."""

    def __init__(self, **options: float) -> None:
        super().__init__(**options)
        self.seen: list[nn.Module] = []

    def collect(self, model: nn.Module, predict: Predict) -> None:
        self.seen.append(copy.deepcopy(model))
        super().collect(model, predict)


def test_training_is_bit_for_bit_the_one_without_an_ensemble() -> None:
    ensemble = Recording(start=0.5, cycle=0.25)
    done = run(ensemble, budget=4)
    assert done.progress.collected["1"]["members"] == ensemble.members == 2
    assert_same_course(done, run(Nothing(), budget=4))


def test_members_of_a_training_predict_with_the_statistics_they_were_trained_with() -> None:
    ensemble = Recording(start=0.5, cycle=0.25)
    done = run(ensemble, budget=4)
    (images, labels), *rest = done.parts.data.held_out()["test"]
    assert not rest
    with torch.no_grad():
        mean = sum(member.eval()(images).double().softmax(1) for member in ensemble.seen) / 2
    read = done.progress.collected["1"]
    assert read["test_nll"] == pytest.approx(-mean[torch.arange(20), labels].log().mean().item(), rel=1e-12)
    assert read["test_accuracy"] == pytest.approx(100 * (mean.argmax(1) == labels).double().mean().item(), rel=1e-15)
    for number, member in enumerate(ensemble.seen):  # 0.5 + 0.25 / 2 and 0.75 + 0.25 / 2 of 4 epochs
        stopped = run(Nothing(), budget=2.5 + number)
        for ours, theirs in zip(member.state_dict().values(), stopped.parts.model.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs)


def test_state_survives_a_file_exactly() -> None:
    ensemble = SnapshotEnsemble(start=0.8, cycle=0.01)
    collected(ensemble, range(5))
    file = io.BytesIO()
    torch.save(ensemble.state_dict(), file)
    file.seek(0)
    resumed = SnapshotEnsemble(start=0.8, cycle=0.01)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for each in (ensemble, resumed):
        collected(each, range(5, 8))
    assert resumed.members == ensemble.members == 8
    assert all(torch.equal(predicted(resumed)[split], predicted(ensemble)[split]) for split in ("test", "validation"))


def test_state_before_the_first_member_is_a_beginning() -> None:
    resumed = SnapshotEnsemble(start=0.8, cycle=0.01)
    resumed.load_state_dict(SnapshotEnsemble(start=0.8, cycle=0.01).state_dict())
    (model,) = collected(resumed, range(1))
    assert resumed.members == 1
    assert torch.equal(predicted(resumed)["test"], log_softmax_of(model)["test"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": 1.0, "cycle": 0.01}, "collect.start=1.0: expected a share of the budget from 0 to below 1"),
        ({"start": -0.1, "cycle": 0.01}, "collect.start=-0.1: expected a share of the budget from 0 to below 1"),
        (
            {"start": 0.75, "cycle": 0.3},
            "collect.cycle=0.3: expected a share of the budget above 0, at most 0.25 (1 - start)",
        ),
        (
            {"start": 0.75, "cycle": 0.0},
            "collect.cycle=0.0: expected a share of the budget above 0, at most 0.25 (1 - start)",
        ),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(values: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        SnapshotEnsemble(**values)
    assert str(error.value) == message
