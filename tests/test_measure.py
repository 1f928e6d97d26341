"""Which steps the benchmark and the GPU check time."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import measure

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
