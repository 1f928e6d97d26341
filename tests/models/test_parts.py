"""What the networks share: depths and stages.

The oracle is the number of blocks that the papers give for a depth, written as numbers.
"""

import pytest

from broadopt.errors import InputError
from broadopt.models.parts import blocks_per_stage, residual_stages


def test_every_depth_of_the_tables_has_its_number_of_blocks():
    basic = {depth: blocks_per_stage("ResNet", depth, layers_per_block=2, other_layers=2) for depth in (20, 32, 56)}
    wide = {depth: blocks_per_stage("WideResNet", depth, layers_per_block=2, other_layers=4) for depth in (16, 28)}
    deep = {depth: blocks_per_stage("PreResNet", depth, layers_per_block=3, other_layers=2) for depth in (29, 164, 272)}
    assert basic == {20: 3, 32: 5, 56: 9}
    assert wide == {16: 2, 28: 4}
    assert deep == {29: 3, 164: 18, 272: 30}


def test_exactly_the_depths_6n_plus_2_are_accepted_up_to_100():
    accepted = []
    for depth in range(-10, 100):
        try:
            accepted.append((depth, blocks_per_stage("ResNet", depth, layers_per_block=2, other_layers=2)))
        except InputError:
            continue
    assert accepted == [(6 * n + 2, n) for n in range(1, 17)]


def test_the_first_block_of_each_stage_widens_and_from_the_second_stage_on_halves():
    assert list(residual_stages(16, (16, 32, 64), 2)) == [
        (16, 16, 1),
        (16, 16, 1),
        (16, 32, 2),
        (32, 32, 1),
        (32, 64, 2),
        (64, 64, 1),
    ]


@pytest.mark.parametrize("depth", [None, "20", 20.0, True])
def test_a_depth_that_is_no_integer_is_refused(depth):
    with pytest.raises(InputError, match=rf"^model\.depth={depth}: expected an integer of at least 1$"):
        blocks_per_stage("ResNet", depth, layers_per_block=2, other_layers=2)
