"""Which steps the benchmark and the GPU check time."""

import gc
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from broadopt.devices.device import set_flags

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import measure
import usual_loop

STEPS = 5


@pytest.mark.parametrize(("method", "passes"), [("sgd", [1, 1, 1, 1, 1]), ("late_sam", [1, 1, 1, 2, 2])])
def test_a_turn_is_the_same_steps_after_the_first_ones_however_often(method: str, passes: list[int]) -> None:
    """late_sam, whose steps are sharp from 0.43 of the training on, takes two gradients in the last of them."""
    options = (
        "model=resnet20",
        "model.depth=8",
        f"method={method}",
        "batch_size=2",
        "budget=1",
        "device=cpu",
        "precision=fp32",
    )
    parts = measure.parts_of(*options, dataset=measure.random_dataset(2 * STEPS, 2))
    seen: list[float] = []
    parts.model.register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[0].sum())))
    turn = measure.steps_of(parts, STEPS)
    first = len(seen)
    assert first == sum([*passes, *passes][: measure.FIRST])
    for _ in range(2):
        assert turn() > 0
    one, other = seen[first : first + sum(passes)], seen[first + sum(passes) :]
    assert one == other
    assert len(set(one)) == STEPS


class Noted:
    """A graph that knows what was recorded by its address alone, as one on a GPU does."""

    def warm_up(self, work: Callable[[], float]) -> tuple[float, str]:
        return work(), ""

    def record(self, work: Callable[[], object]) -> None:
        self.work = weakref.ref(work)

    def replay(self) -> None:
        work = self.work()
        assert work is not None, "its images and labels are another tensor's memory by now"
        work()


@pytest.mark.parametrize("graph", [None, Noted])
def test_bare_steps_are_as_many_and_on_one_batch_also_where_they_are_recorded(graph: type[Noted] | None) -> None:
    options = ("model=resnet20", "model.depth=8", "batch_size=2", "budget=1", "device=cpu", "precision=fp32")
    parts = replace(measure.parts_of(*options, dataset=measure.random_dataset(8, 2)), graph=graph)
    seen: list[float] = []
    parts.model.register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[0].sum())))
    turn = measure.bare(parts, STEPS)
    gc.collect()
    before = len(seen)
    weights = [weight.clone() for weight in parts.model.parameters()]
    assert turn() > 0
    assert len(seen) - before == STEPS
    assert len(set(seen)) == 1
    assert not any(torch.equal(own, other) for own, other in zip(weights, parts.model.parameters(), strict=True))


def test_batches_of_the_loop_on_the_device_are_crops_of_all_images_once_an_epoch() -> None:
    """Against slices of the padded images."""
    batches = list(usual_loop.Resident(6, 4, torch.device("cpu")))
    assert [len(labels) for _, labels in batches] == [4, 2]
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == list(range(6))
    padded = torch.full((6, 3, 40, 40), -2.0)
    padded[:, :, 4:36, 4:36] = (measure.random_dataset(6, 1).train.pixels / 255 - 0.5) / 0.25
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            crops = [padded[label, :, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
            assert sum(torch.equal(image, kind) for crop in crops for kind in (crop, crop.flip(2))) == 1


def test_the_usual_loop_has_torchs_own_switches_and_leaves_those_that_were_set() -> None:
    def switches() -> tuple[str, str]:
        return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision

    set_flags("fp32", deterministic=False)
    with usual_loop.torchs_own_switches():
        assert switches() == ("ieee", "tf32")
    assert switches() == ("ieee", "ieee")
