"""What README and docs/ state is what the code, the configs and the committed results say."""

import contextlib
import importlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import documents
import pytest
import yaml
from command import SMALL, folders, run, until
from documents import CHECKOUT, DOCUMENTS, blocks, lines_of, section, text
from scipy import stats

import broadopt
from broadopt import table as tables
from broadopt.analysis.figures.catalogue import FIGURES
from broadopt.analysis.figures.request import parse as parse_figure
from broadopt.analysis.reporting.request import parse as parse_report
from broadopt.analysis.tables.request import parse
from broadopt.config.compose import compose, run_config
from broadopt.config.identity import identity_of
from broadopt.config.rules import RULES
from broadopt.config.shipped import config_dir, options
from broadopt.devices import rates
from broadopt.figure import draw as draw_figure
from broadopt.runs import checkpoint, heartbeat
from broadopt.runs.results import run_folder
from broadopt.training.planning.price import price

PAGES = [*DOCUMENTS, Path("CONTRIBUTING.md"), Path("CHANGELOG.md")]
COMMITTED = CHECKOUT / "results/cifar10_resnet20_5epochs"
GALLERY = CHECKOUT / "results/cifar10_resnet20_10epochs"
PICTURES = CHECKOUT / "results/figures" / GALLERY.name
REFERENCE = text("docs/reference.md")
NAMED = set(re.findall(r"`([^`\n]+)`", REFERENCE))
"""All that stands in the reference as code."""


# README


def test_readme_takes_a_minute() -> None:
    assert len(text("README.md").splitlines()) <= 150


def test_readme_prints_what_the_committed_runs_print() -> None:
    words = ["--where", "budget=10", "dataset.label_noise=0"]
    printed, _ = tables.make(parse(["runs", "--results", str(GALLERY), *words]))
    quoted = re.findall(r"^\*\*cifar10.*?\*\*\n\n(?:[^|\n].*\n)*\n?(?:\|.*\n)+", text("README.md"), flags=re.MULTILINE)
    assert len(quoted) == 1
    for table in quoted:
        assert unpadded(table) in unpadded(printed)


def test_readme_prints_the_row_that_is_filled() -> None:
    """Three lines of Table 1: no other cell of it has a run."""
    printed, _ = tables.make(parse(["table1", "--results", str(CHECKOUT / "results/table1")]))
    quoted = re.findall(r"^\| (?:(?:Data|CIFAR-10) \||\| \|) .*$", text("README.md"), flags=re.MULTILINE)
    lines = [[cell.strip() for cell in line.split("|")] for line in printed.splitlines() if line.startswith("|")]
    assert len(quoted) == 4
    assert all([cell.strip() for cell in line.split("|")] in lines for line in quoted)
    assert [line[3] for line in lines].count("Δ") == 1


def test_readme_says_of_the_differences_what_scipy_does() -> None:
    """Paired by seed, of what each method reports, from the committed files alone."""
    kept = [json.loads(path.read_text()) for path in GALLERY.rglob("result.json")]
    found: dict[str, dict[int, float]] = {}
    for one in kept:
        if one["budget"] == 10 and one["config"]["dataset"]["label_noise"] == 0:
            metrics = one["metrics"]
            collected = metrics["collected"]
            reported = collected[max(collected, key=float)] if collected else metrics["last"]
            found.setdefault(one["method"], {})[one["seed"]] = reported["test_accuracy"]
    sgd = found.pop("sgd")
    tests = {method: stats.ttest_rel([by[seed] for seed in sgd], [*sgd.values()]) for method, by in found.items()}
    intervals = {method: test.confidence_interval(0.95) for method, test in tests.items()}
    swa, page = intervals.pop("swa"), " ".join(text("README.md").split())
    p = 4 * tests["swa"].pvalue  # Holm: the least of four
    assert f"(95 % interval {swa.low:.2f} to {swa.high:.2f}; paired t test, p = {p:.3f} after" in page
    low, high = (float(word) for word in re.findall(r"lie within (-[\d.]+) and \+([\d.]+) points around 0", page)[0])
    ends = [(one.low, one.high) for one in intervals.values()]
    assert all(low <= first < 0 < last <= high for first, last in ends)
    assert min(first for first, _ in ends) - low < 0.1
    assert high - max(last for _, last in ends) < 0.1


def unpadded(table: str) -> str:
    """A Markdown table without the blanks and dashes that make its columns wide."""
    return re.sub("-+", "-", re.sub(" +", " ", table))


@pytest.mark.parametrize("name", ["curves", "noise"])
def test_pictures_that_need_no_network_show_the_committed_runs(name: str, tmp_path: Path) -> None:
    page = text("docs/figures.md")
    (words,) = re.findall(rf"`{name} ([^`]+)`", page)
    assert f"(../results/figures/{GALLERY.name}/{name}.png)" in page
    draw_figure(parse_figure([name, *words.split(), "--results", str(GALLERY), "-o", str(tmp_path / name)]))
    found, committed = (
        numbers_of(folder / f"{name}.csv") for folder in (tmp_path, CHECKOUT / "results/figures" / GALLERY.name)
    )
    assert found == committed


def test_the_curves_of_the_filled_row_are_those_of_its_runs(tmp_path: Path) -> None:
    (words,) = re.findall(r"`broadopt-figure (curves [^`]+)`", text("README.md"))
    rows = str(CHECKOUT / "results/table1")
    draw_figure(parse_figure([*words.replace("results/table1", rows).split(), "-o", str(tmp_path / "curves")]))
    assert numbers_of(tmp_path / "curves.csv") == numbers_of(CHECKOUT / "results/figures/table1/curves.csv")
    assert (CHECKOUT / "results/figures/table1/curves.png").stat().st_size < 200_000


def numbers_of(path: Path) -> list[str]:
    """The lines of a figure's CSV, without those that say where its runs lie."""
    return [line for line in path.read_text().splitlines() if not line.startswith("# run ")]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_in_the_gallery_and_small(name: str) -> None:
    assert f"![{name}](../results/figures/{GALLERY.name}/{name}.png)" in text("docs/figures.md")
    assert (PICTURES / f"{name}.png").stat().st_size < 200_000
    numbers = (PICTURES / f"{name}.csv").read_text()
    assert numbers.startswith(f"# broadopt-figure {name}\n")
    assert not re.search(r"^# run .*: /", numbers, flags=re.MULTILINE), "drawn with another folder's path"


def test_readme_states_hours_by_the_measured_rates() -> None:
    hours, speeds = [], []
    for overrides in (["experiment=table1/vgg16_cifar10"], ["experiment=table3/wrn28_10", "method=asam"]):
        recipe = run_config(compose(overrides)).recipe
        cost, model = price(recipe), recipe.record()["model"]
        rate = rates.rate_of(model, device="H100", threads=None, precision="bf16")
        assert rate is not None
        hours.append(rates.shown(cost.passes * cost.epochs * cost.images / rate.images_per_second / 3600))
        speeds.append(f"{rate.images_per_second:,.0f}")
    words = f"| {' / '.join(hours)} | by rates measured on an H100 in bf16: {' and '.join(speeds)} images/s |"
    assert words in text("README.md")
    runs, hours = zip(*re.findall(r"# (\d+) runs: ([\d.]+) device hours needed", text("docs/rows.md")), strict=True)
    stated = "| Table 1 with 3 seeds, {} runs / Table 3 with 5 seeds, {} runs | {:.0f} / {:.0f} |"
    assert stated.format(*runs, *map(float, hours)) in text("README.md")


def test_the_rates_of_a_gpu_that_are_stated_are_the_measured_ones() -> None:
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for name in ("gpu", "gpu_recorded", "gpu_rates"):
        for row in json.loads(text(f"results/benchmark/{name}.json"))["rows"]:
            if row["part"] == "rates":
                rows.setdefault(row["network"], {})[row["variant"]] = row
    names = {network: documented(network) for network in rows}
    lines = set(re.findall(r"^\| [A-Z].*$", text("docs/rows.md"), flags=re.MULTILINE))
    for network, variants in rows.items():
        fast, plain = variants["as auto chooses"], variants.get("plain steps")
        share = 100 * fast["TFLOP/s"] / rates.PEAKS["H100"]["bf16"]
        line = f"| {names[network]} | {fast['sgd, images/s']:,.0f} | {fast['TFLOP/s']:.1f} | {share:.1f} % | "
        assert line + (f"{plain['sgd, images/s']:,.0f} |" if plain else "|") in lines
    speeds = {names[network]: variants["as auto chooses"]["TFLOP/s"] for network, variants in rows.items()}
    slowest, fastest = min(speeds, key=speeds.__getitem__), max(speeds, key=speeds.__getitem__)
    words = f"lie between {speeds[slowest]:.0f} TFLOP/s ({slowest}) and {speeds[fastest]:.0f} ({fastest})"
    assert words in " ".join(text("README.md").split())


def documented(network: str) -> str:
    """A network's name as the pages write it."""
    names = re.findall(r"^\| ([\w -]+)(?:, torchvision's head)? \| [\d,]+ \|", text("docs/rows.md"), flags=re.MULTILINE)
    (found,) = [name for name in names if re.sub(r"\W", "", name).lower() == network.replace("_", "")]
    return found + ", torchvision's head" * (network == "vgg19_bn")


# Links, figures and names


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", text(page), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", prose):
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        path = (CHECKOUT / page.parent / target).resolve() if target else CHECKOUT / page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path.relative_to(CHECKOUT)), link


@pytest.mark.parametrize("page", DOCUMENTS, ids=str)
def test_every_document_is_linked_from_readme(page: Path) -> None:
    assert page == Path("README.md") or f"({page})" in text("README.md")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_of_the_checkout_that_are_named_exist(page: Path) -> None:
    named = re.findall(
        r"`((?:broadopt|configs|scripts|tests|docs|results/(?:paper|benchmark|figures))/[\w./]*\w/?)`", text(page)
    )
    for path in named:
        assert (CHECKOUT / path).exists(), path


def test_no_command_overwrites_a_committed_file() -> None:
    """As results/benchmark/gpu.json, the measurement that rows and rates rest on."""
    commands = [line for page in DOCUMENTS for block in blocks(text(page)) for line in lines_of(block)]
    written = [name for line in commands for name in re.findall(r" (?:-o|--output|--json) (\S+)", line)]
    assert {"report.html", "gpu.json", "results/benchmark/gpu_mine.json"} <= set(written)
    assert [name for name in written if (CHECKOUT / name).is_file()] == []


def test_scale_counts_the_simulated_runs_and_the_copies_of_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(CHECKOUT / "scripts")
    simulate_results = importlib.import_module("simulate_results")
    page = " ".join(text("docs/scale.md").split())
    runs = list(islice(simulate_results.records(), 10_000))
    seeds = Counter(identity_of({**run, "seed": 0}) for run in runs)
    folders = Counter(run_folder(Path(), run).parent for run in runs).most_common(3)
    assert set(seeds.values()) == {204, 205}
    assert f"204 or 205 seeds of each of {len(seeds)} configs" in page
    first, second, third = ((folder.relative_to("runs").as_posix(), count) for folder, count in folders)
    assert first[1] == second[1] > third[1]
    assert f"(`{first[0]}` and `{second[0]}`), hold {first[1]} runs" in page
    weights = price(run_config(compose(["experiment=table3/wrn28_10"])).recipe).parameters * 4 / 1e6
    for copies, words in ((2, "in fp32, 292 MB"), (3, "a copy of the weights (438 MB"), (24, "rank of 20 (3.5 GB")):
        stated = re.findall(r"([\d.]+) (MB|GB)", words)[0]
        assert float(stated[0]) * {"MB": 1, "GB": 1000}[stated[1]] == pytest.approx(copies * weights, rel=0.02)
        assert words in page


def test_concepts_defines_each_term_once() -> None:
    terms = [term.lower() for term in re.findall(r"^\*\*(.+?)\.?\*\*", text("docs/concepts.md"), flags=re.MULTILINE)]
    assert len(terms) == len(set(terms))
    words = {"run", "recipe", "protocol", "identity", "budget", "step", "collector", "heartbeat", "checkpoint"}
    phrases = {"trained and budget epochs", "evaluation point", "row and cell", "last, best, collected", "off recipe"}
    assert words | phrases | {"predictor"} <= set(terms)


def test_architecture_has_every_room() -> None:
    rooms = {path.parent.name for path in (CHECKOUT / "broadopt").glob("*/__init__.py")}
    assert rooms
    assert set(re.findall(r"`(\w+)/`", text("docs/architecture.md"))) >= rooms


def test_the_log_gives_the_figures_of_the_benchmark() -> None:
    rows = {row["what"]: row for row in json.loads(text("results/benchmark/ratios.json"))["rows"]}
    log = text("docs/log.md")
    bare = rows["images/s, loop over bare step"]
    assert f"{bare['ratio']:.2f} of its rate ({bare['least']:.2f} to {bare['greatest']:.2f}" in log
    steps = [row["ratio"] for what, row in rows.items() if " step over sgd step " in what]
    assert f"{min(steps):.2f} to {max(steps):.2f} times the seconds a step" in log
    usual = [rows[f"images/s, loop over DataLoader + PIL, {method}"]["ratio"] for method in ("sgd", "asam")]
    assert "{:.2f} times the rate for SGD, {:.2f} for ASAM".format(*usual) in log
    passes = [
        rows[f"seconds, {what}"]["ratio"]
        for what in (
            "SWA epoch of 50,000 images over SGD epoch",
            "BN re-estimation over training epoch",
            "evaluation over forward share of an epoch",
        )
    ]
    assert (
        "an SWA epoch {:.2f} SGD epochs; a BN pass {:.2f} of an epoch; an evaluation {:.2f} of the forward".format(
            *passes
        )
        in log
    )
    (points,) = json.loads(text("results/benchmark/landscape.json"))["rows"]
    wanted = "{ratio:.2f} times the points a second ({least:.2f} to {greatest:.2f}; `benchmark/landscape.json`)"
    assert wanted.format(**points) in log
    networks = {row["network"]: row for row in json.loads(text("results/benchmark/networks.json"))["rows"]}
    for name, words in (("vgg16", "VGG-16"), ("vgg19_bn", "VGG19-BN")):
        assert f"{words} {networks.pop(name)['channels_last / contiguous']:.2f}" in log
    gains = [row["channels_last / contiguous"] for row in networks.values()]
    assert f"{min(gains):.2f} to {max(gains):.2f} times the rate" in log


def test_the_table_of_methods_gives_the_figures_of_the_benchmark() -> None:
    page = text("docs/methods.md").split("\n## ")[0]
    table = dict(re.findall(r"^\| `([^`]+)` \|.*\| ([\d.]+) \|$", page, flags=re.MULTILINE))
    rows = json.loads(text("results/benchmark/methods.json"))["rows"]
    measured = {row["method"]: f"{row['ratio']:.2f}" for row in rows if row["method"] != "sgd"}
    adamw = measured.pop("sgd optimizer=adamw")
    assert table == {"sgd": "1"} | measured
    assert f"`sgd optimizer=adamw` took {adamw}." in page
    assert {name for name in table if " " not in name} == set(options("step"))


def test_the_citation_is_that_of_this_version() -> None:
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["version"] == broadopt.__version__
    assert f"version = {{{broadopt.__version__}}}" in text("docs/citing.md")
    for reference in citation["references"]:
        assert reference["title"] in re.sub("[{}]", "", text("docs/citing.md"))


def test_the_hooks_are_those_of_make_check() -> None:
    """By the tools of .venv, whose versions are pinned."""
    (local,) = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    check = text("Makefile").split("\ncheck:")[1].split("\n\n")[0]
    wanted = {" ".join(line.split()[:2]) for line in check.splitlines() if "$(BIN)" in line}
    entries = {" ".join(hook["entry"].replace(".venv/bin", "$(BIN)").split()[:2]) for hook in local["hooks"]}
    assert local["repo"] == "local"
    assert entries == wanted


# The rows


Stated = tuple[str, str, str, str, str]


def table_rows() -> dict[str, Stated]:
    """Parameters, MACs, budget, PFLOPs and hours of each experiment of the table of rows."""
    found = {}
    for line in re.findall(r"^\| (`table[13]/.*)$", text("docs/rows.md"), flags=re.MULTILINE):
        names, _, parameters, macs, budget, operations, hours, *_ = (cell.strip() for cell in line.split("|"))
        first, *endings = re.findall(r"`([\w/]+)`", names)
        experiments = [first, *(first.rpartition("_")[0] + ending for ending in endings)]
        for place, experiment in enumerate(experiments):
            parameter = parameters.split(", ")[min(place, parameters.count(", "))]
            found[experiment] = (parameter, macs, budget, operations, hours)
    return found


def test_the_table_of_rows_names_every_row() -> None:
    assert sorted(table_rows()) == [name for name in options("experiment") if name.startswith("table")]


@pytest.mark.parametrize(("experiment", "stated"), table_rows().items())
def test_the_table_of_rows_gives_the_figures_of_the_code(
    experiment: str, stated: tuple[str, str, str, str, str]
) -> None:
    in_table3 = experiment.startswith("table3")
    methods = ("sgd", "asam") if in_table3 else ("sgd", "swa")
    recipes = [run_config(compose([f"experiment={experiment}", f"method={method}"])).recipe for method in methods]
    parameters, macs, budget, operations, hours = stated
    costs = [price(recipe) for recipe in recipes[: 1 if in_table3 else 2]]
    assert rounded_as(parameters, costs[0].parameters / 1e6, "M")
    assert rounded_as(macs, costs[0].macs / 1e9, "G")
    budgets = [recipe.budget for recipe in recipes]
    assert budget == ", ".join(dict.fromkeys(f"{value:g}" for value in budgets))
    assert not in_table3 or budgets[0] == 2 * budgets[1], "so that two gradients a step cost as much"
    figures = [cost.flops / 1e15 for cost in costs]
    assert operations == ", SWA ".join(f"{figure:.1f}" if figure < 100 else f"{figure:,.0f}" for figure in figures)
    stated_macs = (recipes[0].record()["model"], recipes[0].dataset.name, costs[0].macs)
    assert stated_macs in list(rates.networks()), "python scripts/rates.py"
    images = [cost.passes * cost.epochs * cost.images for cost in costs]
    times = [
        rates.duration(stated_macs[0], images=count, flops=cost.flops, precision=recipes[0].precision)
        for count, cost in zip(images, costs, strict=True)
    ]
    shown = [rates.shown(time.hours) for time in times]
    assert hours == ", SWA ".join([shown[0] + " measured" * times[0].is_measured, *shown[1:]])


def rounded_as(stated: str, value: float, unit: str) -> bool:
    """Whether `stated`, a figure and its unit, is `value` rounded to the figure's decimals."""
    figure = stated.removesuffix(f" {unit}")
    return stated.endswith(f" {unit}") and figure == f"{value:.{len(figure.partition('.')[2])}f}"


# The reference


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a nested mapping."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix


def keys_of(group: str) -> set[str]:
    """The keys of every file of a config group, as group.KEY."""
    found = set()
    for path in (config_dir() / group).rglob("*.yaml"):
        node = yaml.safe_load(path.read_text())
        node = node.get(group, node)
        found |= {f"{group}.{key}" for key in node if key not in ("_target_", "defaults")}
    return found


def test_every_key_of_a_run_is_there() -> None:
    run_keys = {key for key in yaml.safe_load(text("configs/run.yaml")) if key not in ("defaults", "hydra")}
    config = {key: value for key, value in yaml.safe_load(text("configs/run.yaml")).items() if key in run_keys}
    keys = {key for key in leaves(config) if not key.endswith("._target_")} | set(RULES)
    for group in ("dataset", "model", "step", "collect", "schedule", "optimizer"):
        keys |= keys_of(group)
    assert keys - NAMED == set()


def test_every_key_of_a_protocol_is_there() -> None:
    keys = {
        key for name in options("protocol") for key in yaml.safe_load(text(f"configs/protocol/{name}.yaml"))["recipe"]
    }
    assert {key for key in keys if key not in NAMED and f"augmentation.{key}" not in NAMED} == set()


def test_every_group_and_choice_is_there() -> None:
    table = section("docs/reference.md", "Groups")
    rows = dict(re.findall(r"^\| `([\w/]+)` \| (.*)$", table, flags=re.MULTILINE))
    for group in (
        "method",
        "dataset",
        "model",
        "protocol",
        "step",
        "collect",
        "schedule",
        "optimizer",
        "hydra/launcher",
    ):
        assert {choice for choice in options(group) if f"`{choice}`" not in rows[group]} == set(), group
    assert {choice for choice in options("experiment") if choice.partition("/")[0] not in rows["experiment"]} == set()


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_every_setting_of_a_launcher_is_there_with_its_default(launcher: str) -> None:
    table = section("docs/reference.md", "Launchers").split("hydra/launcher=slurm")[launcher == "slurm"]
    rows = {
        key: line.split("|")[-2].strip(" `")
        for line in table.splitlines()
        if line.startswith("| `")
        for key in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    settings = yaml.safe_load(text(f"configs/hydra/launcher/{launcher}.yaml"))
    shown = {
        key: '""' if value == "" else json.dumps(value).strip('"')
        for key, value in settings.items()
        if key != "_target_"
    }
    assert rows == shown


def test_every_exit_code_is_there() -> None:
    """Those of the contract; tests/reliability/test_odd_command_lines.py knows no others, without Ctrl-C."""
    codes = re.findall(r"^\| (\d+) \|", section("docs/reference.md", "Exit codes"), flags=re.MULTILINE)
    assert codes == ["0", "1", "2", "3", "75", "130"]
    for command, help_text in (("broadopt-run", text("configs/run.yaml")), ("broadopt-table", help_of_table())):
        stated = re.search(r"exit codes: (.*)", help_text, flags=re.IGNORECASE)
        assert stated, command
        assert set(re.findall(r"\b(\d+)\b", stated[1])) <= set(codes)


def help_of_table() -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
        parse(["--help"])
    return output.getvalue()


def test_every_option_of_broadopt_table_is_there() -> None:
    described = set(re.findall(r"^\| `(--[a-z]+)", section("docs/reference.md", "broadopt-table"), flags=re.MULTILINE))
    assert described == set(re.findall(r"^  (?:-h, )?(--[a-z]+)", help_of_table(), flags=re.MULTILINE)) - {"--help"}


def test_every_option_of_broadopt_report_is_there() -> None:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
        parse_report(["--help"])
    options = set(re.findall(r"^  .*?(--[a-z]+)", output.getvalue(), flags=re.MULTILINE)) - {"--help"}
    described = re.findall(r"^\| `.*?(--[a-z]+)", section("docs/reference.md", "broadopt-report"), flags=re.MULTILINE)
    assert set(described) == options


def test_every_figure_and_option_of_broadopt_figure_is_there() -> None:
    described = section("docs/reference.md", "broadopt-figure")
    figures, options = described.split("| option | meaning |")
    assert set(re.findall(r"^\| `(\w+)` \|", figures, flags=re.MULTILINE)) == set(FIGURES)
    wanted = set()
    for figure in FIGURES:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
            parse_figure([figure, "--help"])
        wanted |= set(re.findall(r"^  .*?(--[a-z-]+)", output.getvalue(), flags=re.MULTILINE)) - {"--help"}
    rows = [line.split("|")[1] for line in options.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"--[a-z-]+", row)} == wanted


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was made twice and left all that a finished run can leave."""
    cwd = tmp_path_factory.mktemp("left")
    given = (*SMALL, "budget=1", "method=swa", "dataset.validation=100", "checkpoint.predictor=true")
    for arguments in (given, (*given, "force=true")):
        done = run(*arguments, cwd=cwd, BROADOPT_OUTPUT=str(cwd / "output"))
        assert done.returncode == 0, done.stderr
    (folder,) = folders(cwd)
    return folder


def test_every_file_of_a_run_is_there(left: Path) -> None:
    files = {path.name for path in left.iterdir()}
    assert {"result.1.json", "history.1.csv", "output.txt", "predictor.safetensors"} <= files
    assert files - NAMED == set()
    checkpoint.save(left, {}, identity="x", step=1)
    assert [re.sub(r"\d+", "<step>", path.name) for path in checkpoint.files(left)] == ["checkpoint-<step>.ckpt"]
    assert {"checkpoint-<step>.ckpt", heartbeat.NAME, "error.txt", "code.diff", "code.resumed.diff", ".*.tmp"} <= NAMED


def test_every_field_of_a_result_and_column_of_a_history_is_there(left: Path) -> None:
    result = json.loads((left / "result.json").read_text())
    fields = [path.split(".") for path in leaves({key: value for key, value in result.items() if key != "config"})]
    words = {name for path in fields for name in path if not re.fullmatch(r"[\d]+", name)}
    assert (
        words - NAMED - {"metrics", "last", "best", "collected", "validation", "validation_nll", "validation_ece"}
        == set()
    )
    assert {"metrics.last", "metrics.best", "metrics.collected", "metrics.validation", "config"} <= NAMED
    columns = (left / "history.csv").read_text().splitlines()[0].split(",")
    assert {column for column in columns if not column.startswith("validation_")} <= NAMED


def test_every_field_of_a_heartbeat_is_there(left: Path) -> None:
    config, size = json.loads((left / "result.json").read_text())["config"], {"parameters": 1, "macs": 1, "passes": 1}
    numbers = {"step": 1, "steps": 10, "steps_per_epoch": 5, "images_per_epoch": 100, "images_per_second": 50.0}
    with heartbeat.Heartbeat(left, config, device="CPU", threads=1, size=size) as beat:
        beat.follow(lambda: heartbeat.Position(**numbers))
        until(lambda: "step" in json.loads((left / heartbeat.NAME).read_text()))
        found = json.loads((left / heartbeat.NAME).read_text())
    assert found.keys() <= NAMED


def test_substitutes_change_no_command_that_can_be_run() -> None:
    used: set[str] = set()
    line = (
        "PYTHONPATH=. broadopt-run --config-dir my_configs model=small_net experiment=quickstart budget=1  # a comment"
    )
    assert documents.substituted(line, used) == line.partition("  #")[0]
    assert not used
