"""What is shown of a run while it trains."""

import pytest

from broadopt.training.progress import EpochLines, ProgressLine

ROW = {"epoch": 2.0, "lr": 0.05, "train_loss": 1.2345678, "train_accuracy": 67.891}


@pytest.mark.parametrize(
    ("evaluated", "shown"),
    [
        ({}, ""),
        ({"test_accuracy": 71.5, "test_nll": 0.9, "test_ece": 0.1}, ", test accuracy 71.50 %"),
        (
            {"test_accuracy": 71.5, "validation_accuracy": 72.25},
            ", validation accuracy 72.25 %, test accuracy 71.50 %",
        ),
    ],
)
def test_an_epoch_is_a_line(evaluated: dict[str, float], shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = EpochLines()
    lines.start(images=300, done=0, epochs=2.5)
    lines.row({**ROW, **evaluated}, 4321.0)
    line = f"epoch 2/2.5: lr 0.05, train loss 1.2346, train accuracy 67.89 %{shown}, 4321 images/s\n"
    assert capsys.readouterr().out == line


def test_the_progress_line_of_a_resumed_run_begins_where_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine()
    line.start(images=300, done=120, epochs=2.5)
    assert line.bar is not None
    assert (line.bar.n, line.bar.total) == (120, 300)
    line.row({**ROW, "test_accuracy": 71.5}, 4321.0)
    line.batch(2, 16, lambda: (1.25, 43.75))
    assert line.bar.n == 136
    assert (line.bar.desc, line.bar.postfix) == ("epoch 2/2.5: ", "loss 1.250, accuracy 43.8 %, test 71.50 %")
    line.close()
    assert "136/300" in capsys.readouterr().err
