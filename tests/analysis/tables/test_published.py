"""The published numbers: every cell against a second transcription, and the rows against their experiments."""

import pytest

from broadopt.analysis.tables.published import load
from broadopt.config.compose import recipe_of
from broadopt.config.shipped import paper_dir
from broadopt.errors import InputError

TABLE_1 = """
cifar100 VGG-16            200   72.55 0.10  74.26  73.91 0.12  74.17 0.15  74.27 0.25
cifar100 ResNet-164        150   78.49 0.36  79.84  79.77 0.17  80.18 0.23  80.35 0.16
cifar100 WRN-28-10         200   80.82 0.23  82.27  81.46 0.23  81.91 0.27  82.15 0.27
cifar100 PyramidNet-272    300   83.41 0.21  -      -     -     83.93 0.18  84.16 0.15
cifar10  VGG-16            200   93.25 0.16  93.52  93.59 0.16  93.70 0.22  93.64 0.18
cifar10  ResNet-164        150   95.28 0.10  95.45  95.56 0.11  95.77 0.04  95.83 0.03
cifar10  WRN-28-10         200   96.18 0.11  96.36  96.45 0.11  96.64 0.08  96.79 0.05
cifar10  ShakeShake-2x64d  1800  96.93 0.10  -      -     -     97.16 0.10  97.12 0.06
"""

# The last two columns are the gaps SAM - SGD and ASAM - SAM, which the source of the table gives beside it.
TABLE_3 = """
DenseNet-121    68.70 0.31  69.84 0.12  70.60 0.20  1.14 0.76
ResNet-20       69.76 0.44  71.06 0.31  71.40 0.30  1.30 0.34
ResNet-56       73.12 0.19  75.16 0.05  75.86 0.22  2.04 0.70
VGG19-BN*       71.80 1.35  73.52 1.74  75.80 0.27  1.72 2.28
ResNeXt29-32x4d 79.76 0.23  81.48 0.17  82.30 0.11  1.72 0.82
WRN-28-2        75.28 0.17  77.25 0.35  77.54 0.14  1.97 0.29
WRN-28-10       81.56 0.13  83.42 0.04  83.68 0.12  1.86 0.26
PyramidNet-272† 88.91 0.12  89.36 0.20  89.90 0.13  0.45 0.54
"""

# The results table in the README of the SWA authors' repository: SGD, SWA after 1, 1.25 and 1.5 budgets.
SWA_README = {
    ("cifar100", "vgg16"): "72.55 ± 0.10 | 73.91 ± 0.12 | 74.17 ± 0.15 | 74.27 ± 0.25",
    ("cifar100", "preresnet164"): "78.49 ± 0.36 | 79.77 ± 0.17 | 80.18 ± 0.23 | 80.35 ± 0.16",
    ("cifar100", "wrn28_10"): "80.82 ± 0.23 | 81.46 ± 0.23 | 81.91 ± 0.27 | 82.15 ± 0.27",
    ("cifar10", "vgg16"): "93.25 ± 0.16 | 93.59 ± 0.16 | 93.70 ± 0.22 | 93.64 ± 0.18",
    ("cifar10", "preresnet164"): "95.28 ± 0.10 | 95.56 ± 0.11 | 95.77 ± 0.04 | 95.83 ± 0.03",
    ("cifar10", "wrn28_10"): "96.18 ± 0.11 | 96.45 ± 0.11 | 96.64 ± 0.08 | 96.79 ± 0.05",
}


def published(name):
    return load(name, folder=paper_dir())


def numbers(words):
    return [None if word == "-" else float(word) for word in words]


def test_table_1_holds_the_published_cells():
    table = published("table1")
    lines = [line.split() for line in TABLE_1.strip().splitlines()]
    assert [(row.dataset, row.name) for row in table.rows] == [(line[0], f"{line[1]} ({line[2]})") for line in lines]
    for row, line in zip(table.rows, lines, strict=True):
        sgd, sgd_std, fge, *swa = numbers(line[3:])
        expected = {
            "sgd": (sgd, sgd_std),
            "fge_1": (fge, None),
            **{f"swa_{key}": tuple(swa[2 * index :][:2]) for index, key in enumerate(("1", "1.25", "1.5"))},
        }
        assert {name: (cell.mean, cell.std) for name, cell in row.cells.items()} == expected
        assert set(row.budget.values()) == {int(line[2])}


def test_table_3_holds_the_published_cells():
    table = published("table3")
    lines = [line.split() for line in TABLE_3.strip().splitlines()]
    assert [row.name for row in table.rows] == [line[0] for line in lines]
    for row, line in zip(table.rows, lines, strict=True):
        sgd, sgd_std, sam, sam_std, asam, asam_std, sam_gain, asam_gain = numbers(line[1:])
        cells = {name: (cell.mean, cell.std) for name, cell in row.cells.items()}
        assert cells == {"sgd": (sgd, sgd_std), "sam": (sam, sam_std), "asam": (asam, asam_std)}
        assert cells["sam"][0] - cells["sgd"][0] == pytest.approx(sam_gain, abs=1e-9)
        assert cells["asam"][0] - cells["sam"][0] == pytest.approx(asam_gain, abs=1e-9)


def test_cells_said_to_stand_in_the_authors_readme_do():
    for row in published("table1").rows:
        from_code = {name: cell for name, cell in row.cells.items() if "code" in cell.source}
        if (row.dataset, row.model) not in SWA_README:
            assert not from_code
            continue
        shown = " | ".join(f"{cell.mean:.2f} ± {cell.std:.2f}" for cell in from_code.values())
        assert list(from_code) == ["sgd", "swa_1", "swa_1.25", "swa_1.5"]
        assert shown == SWA_README[row.dataset, row.model]


def test_columns_read_what_the_papers_report():
    assert [(column.method, column.metric, column.key) for column in published("table1").columns] == [
        ("sgd", "last", None),
        ("fge", "collected", "1"),
        ("swa", "collected", "1"),
        ("swa", "collected", "1.25"),
        ("swa", "collected", "1.5"),
    ]
    assert [(column.method, column.metric) for column in published("table3").columns] == [
        ("sgd", "best"),
        ("sam", "best"),
        ("asam", "best"),
    ]


@pytest.mark.parametrize("name", ["table1", "table3", "label_noise"])
def test_every_cell_names_its_source_and_how_certain_its_count_is(name):
    table = published(name)
    for row in table.rows:
        assert list(row.cells) == [column.name for column in table.columns]
        for cell in row.cells.values():
            assert cell.source
            assert set(cell.source) <= set(table.sources)
            assert (cell.mean is None) == (cell.source == ("not_published",))
            assert (cell.runs is None) == (cell.runs_source is None)
            assert cell.runs_source in (None, *table.sources)
    assert all(note.text and note.certainty for note in table.footnotes)


@pytest.mark.parametrize("name", ["table1", "table3", "label_noise"])
def test_the_experiment_of_a_row_is_its_network_data_protocol_and_budget(name):
    table = published(name)
    assert len({(row.experiment, *row.overrides.items()) for row in table.rows}) == (5 if name == "label_noise" else 8)
    for row in table.rows:
        for method in table.methods:
            given = row.overrides.get(method, ())
            recipe = recipe_of([f"experiment={row.experiment}", f"method={method}", *given])
            chosen = (recipe["dataset"]["name"], recipe["model"]["name"], recipe["protocol"], recipe["method"])
            assert chosen == (row.dataset, row.model, table.protocol, method)
            assert recipe["budget"] == row.budget[method]


def test_a_recipe_reads_swa_out_at_the_budgets_that_the_paper_prints():
    for row in published("table1").rows:
        recipe = recipe_of([f"experiment={row.experiment}", "method=swa"])
        printed = [float(name.removeprefix("swa_")) for name, cell in row.cells.items() if "swa" in name and cell.mean]
        assert recipe["collect"]["budgets"] == printed


def test_label_noise_is_that_of_two_papers():
    """Accuracy by share of wrong labels: the SAM paper's Table 4, and the ASAM paper's Table 6."""
    table = published("label_noise")
    shown = {row.name: [cell.mean for cell in row.cells.values()] for row in table.rows}
    assert shown == {
        "ResNet-32, 0 %": [None, None, 94.50, 94.80, 94.88],
        "ResNet-32, 20 %": [84.8, 95.1, 91.32, 92.94, 93.21],
        "ResNet-32, 40 %": [68.8, 93.4, 87.68, 90.62, 90.89],
        "ResNet-32, 60 %": [48.2, 90.5, 82.50, 86.58, 87.41],
        "ResNet-32, 80 %": [26.2, 77.9, 68.35, 69.92, 67.69],
    }
    for row, share in zip(table.rows, (0, 0.2, 0.4, 0.6, 0.8), strict=True):
        for method in table.methods:
            recipe = recipe_of([f"experiment={row.experiment}", f"method={method}", *row.overrides[method]])
            assert recipe["dataset"]["label_noise"] == share
            rho = {"sam": 0.05 if share in (0, 0.8) else 0.1, "asam": 0.5, "sgd": None}[method]
            assert recipe["step"].get("rho") == rho


def test_a_missing_table_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"table1\.yaml is missing"):
        load("table1", folder=tmp_path)
