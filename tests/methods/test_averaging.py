"""EMA, LAWA and SWAG: averages of weights, and networks drawn around one; and several collectors on one training.

The oracles: the closed form of an exponential average, the arithmetic mean, the moments and deviations of Maddox et al.
as they are defined, in float64, and a training without a collector.
"""

import copy
import io
import math
from typing import Any

import pytest
import torch
from formulas import SmallNet, batches, flat
from short_training import STEPS_PER_EPOCH, assert_same_course, run, training
from torch import Tensor, nn

from broadopt.errors import InputError, RunFailed
from broadopt.methods.averaging.ema import MovingAverage
from broadopt.methods.averaging.lawa import LatestAverage
from broadopt.methods.averaging.swag import GaussianAverage
from broadopt.methods.batchnorm import reestimate
from broadopt.methods.collect import Collector, EverySteps, Nothing, Predict, StepCollector
from broadopt.methods.fge import SnapshotEnsemble
from broadopt.methods.swa import WeightAverage

IMAGES = batches(1)[0][0]
EXACT = {"rtol": 1e-12, "atol": 1e-14}


def no_statistics(model: nn.Module) -> None:
    raise AssertionError("these statistics are its own")


def networks(count: int) -> list[SmallNet]:
    """Networks with different weights and different BN statistics."""
    made = [SmallNet(seed=seed) for seed in range(count)]
    for number, model in enumerate(made):
        model.bn.running_mean.fill_(number)
        model.bn.running_var.fill_(1 + number**2)
    return made


def exponential(values: list[Tensor], decay: float) -> Tensor:
    """d^n w_0 + (1 - d) sum_i d^(n - i) w_i, summed term by term."""
    last = len(values) - 1
    terms = [(1 - decay) * decay ** (last - i) * value for i, value in enumerate(values) if i]
    return sum(terms, decay**last * values[0])


@pytest.mark.parametrize(
    ("given", "epochs", "decay"),
    [({"decay": 0.9}, 0.25, 0.9), ({"half_life": 2.0}, 0.5, 2**-0.25), ({"half_life": 0.01}, 0.01, 0.5)],
)
@pytest.mark.parametrize("bn", ["reestimate", "own"])
def test_moving_average_is_the_sum_of_its_closed_form(given: dict, epochs: float, decay: float, bn: str) -> None:
    average, models = MovingAverage(**given, bn=bn), networks(12)
    for model in models:
        average.update(model, epochs=epochs)
    kept = [[*model.parameters(), *((model.bn.running_mean, model.bn.running_var) if bn == "own" else ())]
            for model in models]  # fmt: skip
    assert average.members == 12
    torch.testing.assert_close(flat(average.average), exponential([flat(each) for each in kept], decay), **EXACT)


def test_own_statistics_are_averaged_with_the_weights_and_cost_no_pass() -> None:
    average, models = MovingAverage(decay=0.7, bn="own"), networks(4)
    for model in models:
        average.update(model, epochs=1)
    found = average.network(SmallNet(seed=9), no_statistics)
    for name in ("running_mean", "running_var"):
        values = [getattr(model.bn, name) for model in models]
        torch.testing.assert_close(getattr(found.bn, name), exponential(values, 0.7), **EXACT)


def test_reestimated_statistics_are_those_of_the_averaged_weights() -> None:
    average, models, data = MovingAverage(half_life=1.0), networks(3), [images for images, _ in batches(3)]
    for model in models:
        average.update(model, epochs=0.5)
    twin = SmallNet(seed=9)
    with torch.no_grad():
        for place, parameter in enumerate(twin.parameters()):
            parameter.copy_(exponential([list(model.parameters())[place] for model in models], 2**-0.5))
        inputs = [twin.conv(each).relu() for each in data]
        twin.bn.running_mean.copy_(torch.stack([each.mean((0, 2, 3)) for each in inputs]).mean(0))
        twin.bn.running_var.copy_(torch.stack([each.var((0, 2, 3), unbiased=True) for each in inputs]).mean(0))
    predict: Predict = lambda network: {"test": network.eval()(IMAGES)}  # noqa: E731
    outputs = average.predict(SmallNet(), predict, lambda network: reestimate(network, data))
    torch.testing.assert_close(outputs["test"], twin.eval()(IMAGES), **EXACT)


class Recording(MovingAverage):
    """Also keeps the weights and the time of each update."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: list[Tensor] = []
        self.spans: set[float] = set()

    def update(self, model: nn.Module, *, epochs: float) -> None:
        self.seen.append(flat(model.parameters()))
        self.spans.add(epochs)
        super().update(model, epochs=epochs)


@pytest.mark.parametrize(("every", "start", "updates"), [(1, 0.0, 16), (1, 0.5, 9), (3, 0.25, 5), (5, 0.0, 4)])
def test_training_with_a_moving_average_is_the_one_without_it(every: int, start: float, updates: int) -> None:
    average = Recording(half_life=0.5, every=every, start=start)
    done = run(average, budget=4)
    assert len(average.seen) == average.members == done.progress.collected["1"]["members"] == updates
    assert average.spans == {every / STEPS_PER_EPOCH}
    assert_same_course(done, run(Nothing(), budget=4))
    first = max(1, round(start * 4 * STEPS_PER_EPOCH))
    for number, weights in enumerate(average.seen[:2]):
        stopped = run(Nothing(), budget=(first + number * every) / STEPS_PER_EPOCH)
        assert torch.equal(weights, flat(stopped.parts.model.parameters()))
    closed = exponential([each.double() for each in average.seen], 2 ** (-every / STEPS_PER_EPOCH / 0.5))
    torch.testing.assert_close(flat(average.average).double(), closed, rtol=1e-5, atol=1e-7)


def test_collectors_on_one_training_collect_what_they_collect_alone() -> None:
    def of(name: str) -> Collector:
        makers = {
            "swa": lambda: WeightAverage(start=0.5, budgets=(1, 1.5)),
            "ema": lambda: MovingAverage(half_life=1.0, every=2),
            "lawa": lambda: LatestAverage(latest=2),
            "fge": lambda: SnapshotEnsemble(start=0.25, cycle=0.25),
            "swag": lambda: GaussianAverage(start=0.5, rank=2, samples=3),
        }
        return makers[name]()

    names = ("ema", "lawa", "fge", "swag")
    together = training(of("swa"), budget=4, also={name: of(name) for name in names})
    together.run(lambda: None, minutes=60)
    assert set(together.progress.collected) == {"1", "1.5", *(f"{name} 1" for name in names)}
    alone = run(of("swa"), budget=4)
    assert_same_course(together, alone)
    assert {key: together.progress.collected[key] for key in ("1", "1.5")} == alone.progress.collected
    for name in names:
        assert together.progress.collected[f"{name} 1"] == run(of(name), budget=4).progress.collected["1"]


@pytest.mark.parametrize(
    "own",
    [lambda: MovingAverage(decay=0.8, bn="own"), lambda: LatestAverage(latest=2), lambda: MovingAverage(decay=0.8)],
)
def test_what_a_run_reports_is_what_was_evaluated_where_another_collector_goes_on(own: Any) -> None:
    made = training(own(), budget=3, also={"swa": WeightAverage(start=0.5, budgets=(1, 1.5))})
    made.run(lambda: None, minutes=60)
    assert made.epochs == 4.5
    figures = made.evaluator.metrics(made.evaluator.predict(made.network()), where="")
    assert figures == {name: made.progress.collected["1"][name] for name in figures}


def test_what_a_run_reports_is_what_was_evaluated_where_statistics_of_bn_depend_on_noise() -> None:
    made = training(WeightAverage(start=0.5, budgets=(1,)), budget=2)
    made.parts.model.features.insert(0, nn.Dropout(0.3))  # ahead of BN, as the noise of Shake-Shake
    made.run(lambda: None, minutes=60)
    figures = made.evaluator.metrics(made.evaluator.predict(made.network()), where="")
    assert figures == {name: made.progress.collected["1"][name] for name in figures}


def test_a_number_that_is_not_finite_is_found_in_every_collector() -> None:
    made = training(LatestAverage(latest=2), budget=2, also={"ema": MovingAverage(decay=0.5)})
    made.run(lambda: None, minutes=60)
    for collector, name in ((made.parts.collector, "collector"), (made.parts.also["ema"], "collector ema")):
        made.check_finite()
        value = collector.average[1].flatten()[0].clone()
        collector.average[1].flatten()[0] = math.nan
        with pytest.raises(RunFailed, match=f"^{name} average 1 is not finite in epoch 2 at lr "):
            made.check_finite()
        collector.average[1].flatten()[0] = value


def test_steps_are_counted_and_not_listed() -> None:
    points = MovingAverage(decay=0.9, start=0.5, every=7).collection_points(200)
    assert points == EverySteps(start=100.0, end=200.0, steps=7)
    made = training(MovingAverage(decay=0.9, start=0.5, every=7), budget=1e6)
    assert made.calendar.updates == {"": range(2_000_000, 4_000_001, 7)}
    assert made.calendar.collection_points == {}
    assert made.calendar.moments == 1_000_000  # the ends of epochs
    assert isinstance(made.parts.collector, StepCollector)
    assert not isinstance(LatestAverage(latest=5), StepCollector)


@pytest.mark.parametrize(
    ("latest", "budget", "points"),
    [
        (5, 200, [196, 197, 198, 199, 200]),
        (1, 200, [200]),
        (5, 3, [1, 2, 3]),
        (2, 2.5, [2, 2.5]),
        (9, 2.5, [1, 2, 2.5]),
        (3, 0.5, [0.5]),
    ],
)
def test_the_latest_epochs_are_averaged(latest: int, budget: float, points: list[float]) -> None:
    average = LatestAverage(latest=latest)
    assert average.collection_points(budget) == points
    assert average.evaluation_points(budget) == {"1": budget}


def test_latest_average_of_a_training_is_the_mean_of_trainings_that_end_there() -> None:
    average = LatestAverage(latest=3)
    done = run(average, budget=5)
    assert done.progress.collected["1"]["members"] == 3
    ends = [flat(run(Nothing(), budget=epoch).parts.model.parameters()).double() for epoch in (3, 4, 5)]
    torch.testing.assert_close(flat(average.average).double(), sum(ends) / 3, rtol=1e-6, atol=1e-7)
    assert_same_course(done, run(Nothing(), budget=5))


def gaussian(count: int, **options: Any) -> tuple[GaussianAverage, Tensor]:
    """A collector of `count` networks, and their weights, [count, n]."""
    collector, models = GaussianAverage(start=0.0, **options), networks(count)
    for model in models:
        collector.collect(model)
    return collector, torch.stack([flat(model.parameters()) for model in models])


@pytest.mark.parametrize(("count", "rank"), [(1, 0), (6, 0), (2, 2), (6, 4), (3, 20)])
def test_networks_are_drawn_from_the_gaussian_of_the_paper(count: int, rank: int) -> None:
    collector, weights = gaussian(count, rank=rank)
    mean, variance = weights.mean(0), weights.var(0, correction=0)
    torch.testing.assert_close(variance, weights.square().mean(0) - mean.square(), rtol=1e-9, atol=1e-15)
    columns = [weights[i] - weights[: i + 1].mean(0) for i in range(count)][-rank:] if rank else []
    draws = torch.stack([flat(collector.sample(seed)) for seed in range(3)])
    for seed, draw in enumerate(draws):
        generator = torch.Generator().manual_seed(seed)
        z1 = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in SmallNet().parameters()]
        z2 = torch.randn(len(columns), generator=generator, dtype=torch.float64)
        expected = mean + (variance / (2 if rank else 1)).sqrt() * flat(z1)
        for z, column in zip(z2, columns, strict=True):
            expected = expected + z * column / math.sqrt(2 * max(len(columns) - 1, 1))
        torch.testing.assert_close(draw, expected, rtol=1e-12, atol=1e-13)
    assert count == 1 or not torch.equal(draws[0], draws[1])


def test_a_small_variance_keeps_its_digits() -> None:
    """1 +- 1e-4 in float32, where the difference of the moments of four such weights has no digit of 1e-8."""
    collector, model = GaussianAverage(start=0.0, rank=0), nn.Linear(1, 1, bias=False)
    for sign in (1, -1, -1, 1):
        nn.init.constant_(model.weight, 1 + sign * 1e-4)
        collector.collect(model)
    found = (collector.squares[0] / collector.members).item()
    assert found == pytest.approx(1e-8, rel=1e-3)


def test_a_parameter_without_dimensions_is_drawn_too() -> None:
    collector, model = GaussianAverage(start=0.0, rank=0), nn.ParameterList([torch.ones(())])
    collector.collect(model)
    assert [weight.item() for weight in collector.sample(0)] == [1.0]  # one network has no variance


@pytest.mark.parametrize("rank", [0, 3])
def test_prediction_is_the_mean_softmax_of_the_drawn_networks(rank: int) -> None:
    collector, _ = gaussian(5, rank=rank, samples=4)
    data = [images for images, _ in batches(2)]

    def statistics(model: nn.Module) -> None:
        torch.manual_seed(0)  # as the evaluator does it for dropout
        reestimate(model, data)

    def predict(model: nn.Module) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"test": model.eval()(IMAGES).log_softmax(1)}

    model = SmallNet(seed=9)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(11)
    outputs = collector.predict(model, predict, statistics)["test"]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    torch.manual_seed(11)
    seeds = torch.randint(2**63 - 1, (4,)).tolist()
    assert len(set(seeds)) == 4
    probabilities = []
    for seed in seeds:
        twin = SmallNet()
        for parameter, value in zip(twin.parameters(), collector.sample(seed), strict=True):
            parameter.data.copy_(value)
        reestimate(twin, data)
        probabilities.append(predict(twin)["test"].exp())
    torch.testing.assert_close(outputs.exp(), sum(probabilities) / 4, **EXACT)
    assert (probabilities[0] - probabilities[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "make",
    [
        lambda: MovingAverage(decay=0.9, bn="own"),
        lambda: LatestAverage(latest=50),
        lambda: GaussianAverage(start=0.0, rank=0),
        lambda: GaussianAverage(start=0.0, rank=2),
    ],
)
def test_state_survives_a_file_exactly(make: Any) -> None:
    def collect(collector: Collector, models: list[SmallNet]) -> None:
        for model in models:
            if isinstance(collector, StepCollector):
                collector.update(model, epochs=1)
            else:
                collector.collect(model, lambda _: {})

    for before in (0, 1, 5):  # 0: as a run that is stopped ahead of the first collection point
        whole, models = make(), networks(8)
        collect(whole, models[:before])
        file = io.BytesIO()
        torch.save(whole.state_dict(), file)
        file.seek(0)
        resumed = make()
        resumed.load_state_dict(torch.load(file, weights_only=True))
        for each in (whole, resumed):
            collect(each, models[before:])
        assert resumed.members == whole.members == 8
        drawn = [one.sample(1) if isinstance(one, GaussianAverage) else one.average for one in (whole, resumed)]
        assert torch.equal(flat(drawn[0]), flat(drawn[1]))


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (
            MovingAverage,
            {},
            "collect.decay=null and collect.half_life=null: expected a number for exactly one of them",
        ),
        (
            MovingAverage,
            {"decay": 0.9, "half_life": 2.0},
            "collect.decay=0.9 and collect.half_life=2.0: expected a number for exactly one of them",
        ),
        (MovingAverage, {"decay": 1.0}, "collect.decay=1.0: expected a number from 0 to below 1"),
        (MovingAverage, {"half_life": 0.0}, "collect.half_life=0.0: expected a number of epochs > 0"),
        (MovingAverage, {"decay": 0.9, "every": 0}, "collect.every=0: expected a whole number of steps >= 1"),
        (MovingAverage, {"decay": 0.9, "bn": "none"}, "collect.bn=none: expected one of reestimate, own"),
        (
            MovingAverage,
            {"decay": 0.9, "start": 1.5},
            "collect.start=1.5: expected 0 to 1, the first evaluation point of collect.budgets",
        ),
        (LatestAverage, {"latest": 0}, "collect.latest=0: expected a whole number of epochs >= 1"),
        (
            GaussianAverage,
            {"start": 0.5, "rank": 1},
            "collect.rank=1: expected 0, the diagonal alone, or a whole number >= 2",
        ),
        (
            GaussianAverage,
            {"start": 0.5, "samples": 0},
            "collect.samples=0: expected a whole number of networks >= 1",
        ),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(make: Any, values: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        make(**values)
    assert str(error.value) == message
