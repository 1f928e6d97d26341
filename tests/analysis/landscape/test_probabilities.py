import math
from pathlib import Path

import pytest
import torch
from stored import record, store

from broadopt.analysis.landscape import probabilities
from broadopt.analysis.landscape.runs import chosen
from broadopt.errors import InputError
from broadopt.methods.fge import SnapshotEnsemble
from broadopt.training.evaluate import metrics

QUICK = "experiment=quickstart"
FIRST = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64).log()
SECOND = torch.tensor([[0.0, 1.0], [0.5, 0.5]], dtype=torch.float64).log()


def random_predictions(images: int, classes: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, classes, generator=generator, dtype=torch.float64).mul(3).log_softmax(dim=1)


def test_opposite_predictions_are_the_root_of_two_apart() -> None:
    assert probabilities.distance(FIRST, SECOND) == math.sqrt(2) / 2  # the mean of sqrt(2) and 0
    assert probabilities.distance(FIRST, FIRST) == 0


def test_agreement_counts_the_same_class() -> None:
    assert probabilities.agreement(FIRST, SECOND) == 50
    assert probabilities.agreement(FIRST, FIRST) == 100


def test_every_pair_is_compared_once() -> None:
    third = torch.tensor([[0.5, 0.5], [0.5, 0.5]], dtype=torch.float64).log()
    half = math.sqrt(0.5) / 2
    assert probabilities.pairwise([FIRST, SECOND, third]) == pytest.approx([math.sqrt(2) / 2, half, half], rel=1e-15)


def test_the_ensemble_is_to_the_bit_what_fge_predicts() -> None:
    members = [random_predictions(50, 7, seed) for seed in range(5)]
    collector = SnapshotEnsemble(start=0.5, cycle=0.1)
    for member in members:
        collector.collect(torch.nn.Identity(), lambda model, member=member: {"test": member})
    assert torch.equal(
        probabilities.ensemble(members),
        collector.predict(torch.nn.Identity(), lambda model: {})["test"],
    )


def test_an_ensemble_that_is_drawn_is_not_taken_for_the_mean_of_what_it_collected(tmp_path: Path) -> None:
    (run,) = chosen([str(store(tmp_path, record(QUICK, "method=sgd", "collect=swag")))], [])
    with pytest.raises(InputError, match="swag does not predict by the networks that it collected"):
        probabilities.of_run(run, torch.zeros(1, 3, 32, 32))


def test_the_network_at_the_mean_is_not_predicted_by_anew_for_each_share() -> None:
    weights = torch.randn(3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    asked = []

    def predict(vector: torch.Tensor) -> torch.Tensor:
        asked.append(vector)
        return vector.view(4, 2).log_softmax(dim=1)

    swa = predict(weights.mean(dim=0))
    found = [probabilities.at_spread(predict, weights, share, swa=swa) for share in (1.0, 0.5)]
    assert len(asked) == 1 + 2 * 3
    mean = sum(row.view(4, 2).softmax(dim=1) for row in weights) / 3
    assert found[0]["against_swa"] == pytest.approx(float((mean - swa.exp()).norm(dim=1).mean()), rel=1e-9)


def test_the_ensemble_is_the_mean_of_probabilities() -> None:
    assert probabilities.ensemble([FIRST, SECOND]).exp().tolist() == [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize("seed", range(3))
def test_the_bins_give_the_stored_calibration_error(seed: int) -> None:
    predictions = random_predictions(400, 5, seed)
    labels = torch.randint(5, (400,), generator=torch.Generator().manual_seed(seed))
    found = probabilities.reliability(predictions, labels)
    assert {"accuracy": found.accuracy, "nll": found.nll, "ece": found.ece} == metrics(predictions, labels)
    gaps = [one.images / 400 * abs(one.accuracy - one.confidence) for one in found.bins]
    assert math.fsum(gaps) == pytest.approx(found.ece, rel=1e-12)
    assert sum(one.images for one in found.bins) == 400


def test_bins_are_closed_above_and_empty_ones_left_out() -> None:
    certain = torch.tensor([[0.2, 0.8], [0.8, 0.2], [1.0, 0.0]], dtype=torch.float64).log()
    low, high = probabilities.reliability(certain, torch.tensor([1, 1, 0])).bins
    assert (low.low, low.high, low.images, low.accuracy) == (11 / 15, 12 / 15, 2, 0.5)
    assert low.confidence == pytest.approx(0.8, rel=1e-15)
    assert (high.low, high.high, high.images, high.confidence, high.accuracy) == (14 / 15, 1.0, 1, 1.0, 1.0)
