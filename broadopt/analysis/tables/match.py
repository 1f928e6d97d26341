"""Which runs repeat a recipe, and in what the others differ from it. Works on the dicts of result.json alone."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from broadopt.config.identity import AS_WITHOUT, came_later, identity_of
from broadopt.config.shipped import names_of, options
from broadopt.errors import InputError

Result = dict[str, Any]
Compose = Callable[[list[str]], dict[str, Any]]

NO_RECIPE = ("seed", "precision")
"""Top-level keys that a recipe leaves open: they never make a run differ from it."""

METHODS = ("sgd", "swa", "fge", "sam", "asam")

MOST = 60
"""Differences that are named; a recipe has fewer keys."""

LONGEST = 200
"""Characters of a value that are shown."""

_NOTHING = object()


def differences(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    """What makes `actual` another config than `expected`, a line a key: `budget 5 instead of 200`.

    Both are resolved nested configs. `seed` and `precision` are no part of a recipe; of the keys that start with `_`
    only `_target_` counts, and only where both sides have it.
    """
    return list(differing(expected, actual).values())


def differing(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> dict[str, str]:
    """As `differences`, by the dotted key."""
    without = [{key: value for key, value in side.items() if key not in NO_RECIPE} for side in (expected, actual)]
    walk = islice(_walk(*without, path=""), 10 * MOST)  # a file may have ten thousand keys
    found = {path: (wanted, got) for path, wanted, got in walk}
    lines = {
        path: f"{_clipped(path)} {show(got)} instead of {show(wanted)}"
        for path, (wanted, got) in found.items()
        if not _is_copy(path, found)
    }
    return lines if len(lines) <= MOST else dict(islice(lines.items(), MOST)) | {"": "and more"}


def _is_copy(path: str, found: Mapping[str, tuple[Any, Any]]) -> bool:
    """Whether the value only follows another of the same name further up, as schedule.budget follows budget."""
    leaf = path.rpartition(".")[2]
    earlier = list(found)[: list(found).index(path)]
    alike = [other for other in found if other.rpartition(".")[2] == leaf]
    twins = [other for other in alike if all(map(_same, found[other], found[path]))]
    return any(other.count(".") < path.count(".") or other in earlier for other in twins if other != path)


def _walk(expected: Mapping[str, Any], actual: Mapping[str, Any], *, path: str) -> Iterator[tuple[str, Any, Any]]:
    if "_target_" in expected and "_target_" in actual and expected["_target_"] != actual["_target_"]:
        yield path, expected, actual
        return
    target = expected.get("_target_", actual.get("_target_"))
    for key in dict.fromkeys([*expected, *actual]):
        if key.startswith("_"):
            continue
        inner = f"{path}.{key}" if path else key
        unrecorded = AS_WITHOUT[inner] if came_later(inner, target) else _NOTHING
        wanted, got = expected.get(key, unrecorded), actual.get(key, unrecorded)
        if isinstance(wanted, Mapping) and isinstance(got, Mapping):
            yield from _walk(wanted, got, path=inner)
        elif not _same(wanted, got):
            yield inner, wanted, got


def _same(wanted: Any, got: Any) -> bool:
    """Equality by value: 200 is 200.0, a tuple is a list; but true is not 1, and a missing key is not a null."""
    if isinstance(wanted, (list, tuple)) and isinstance(got, (list, tuple)):
        return len(wanted) == len(got) and all(map(_same, wanted, got))
    return isinstance(wanted, bool) == isinstance(got, bool) and wanted == got


def show(value: Any) -> str:
    """A config value as people write it: none, true, 5 for 5.0; an object by its class and arguments; cut short where
    it is longer than a line has room for.
    """
    return _clipped(whole(value))


def _clipped(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def whole(value: Any) -> str:
    """As `show`, of any length: what two values are told apart by."""
    if value is _NOTHING:
        return "nothing"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(whole, value))}]"
    if isinstance(value, Mapping):
        arguments = ", ".join(f"{key} {whole(inner)}" for key, inner in value.items() if not key.startswith("_"))
        return f"{str(value.get('_target_', '')).rpartition('.')[2]}({arguments})"
    return str(value)


@dataclass(frozen=True)
class Group:
    """Runs of one config that differ in their seed alone."""

    dataset: str
    model: str
    method: str
    protocol: str
    precision: str
    config: Mapping[str, Any]
    runs: tuple[Result, ...]


def groups(results: Iterable[Result]) -> list[Group]:
    """The results by config without its seed, in the order in which the configs are first met."""
    together: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        config = {key: value for key, value in result["config"].items() if key != "seed"}
        names = (str(result[name]) for name in ("dataset", "model", "method", "protocol"))
        together.setdefault((*names, precision(result), identity_of(config)), []).append(result)
    return [_group(runs) for runs in together.values()]


def _group(runs: list[Result]) -> Group:
    first = runs[0]
    return Group(
        dataset=first["dataset"],
        model=first["model"],
        method=first["method"],
        protocol=first["protocol"],
        precision=precision(first),
        config=first["config"],
        runs=tuple(runs),
    )


def precision(result: Result) -> str:
    """The precision the run was computed in: fp32 or bf16."""
    return str(result["environment"].get("precision", result["config"].get("precision")))


def step_and_collect(method: str) -> tuple[str, str]:
    """What a composition was composed of: ("sam", "swa") of `sam+swa`, ("sgd", "swa+ema") of `sgd+swa+ema`, and
    ("sgd", "ema") of `ema`.
    """
    step, _, collect = method.partition("+")
    return (step, collect) if collect else ("sgd", step)


def rank(method: str) -> tuple[int, str]:
    """Sorts methods as the tables do: sgd first, compositions last."""
    return (METHODS.index(method) if method in METHODS else len(METHODS), method)


class Recipes:
    """What experiments and protocols prescribe, each composed once and only when asked for.

    `compose` turns overrides into a resolved config, as broadopt.config.compose.recipe_of does.
    """

    def __init__(self, compose: Compose) -> None:
        self._compose = compose
        self._known: dict[tuple[str, ...], dict[str, Any] | None] = {}

    def of_experiment(self, experiment: str, method: str, overrides: Sequence[str] = ()) -> dict[str, Any] | None:
        """The recipe of a row of a table, with what the row gives beside its experiment, or None where there is none
        for `method`.
        """
        words = self._method(method)
        return self._recipe(f"experiment={experiment}", *words, *overrides) if words else None

    def of_protocol(self, group: Group) -> dict[str, Any] | None:
        """The recipe of the group's protocol for its data set, network and method, or None where there is none."""
        words = self._method(group.method)
        if not words or not _are_shipped(dataset=group.dataset, model=group.model, protocol=group.protocol):
            return None
        # Where images lie is no part of a recipe, but Hydra wants it said.
        place = ("dataset.path=.",) if group.dataset == "image_folder" else ()
        names = (f"dataset={group.dataset}", f"model={group.model}", f"protocol={group.protocol}")
        return self._recipe(*names, *words, *place)

    def _method(self, method: str) -> tuple[str, ...]:
        """The overrides of a method file, or of the step and the collector of a composition; none where there is no
        such method.
        """
        if _are_shipped(method=method):
            return (f"method={method}",)
        step, collect = step_and_collect(method)
        if not _are_shipped(method=step) or not all(_are_shipped(collect=name) for name in names_of(collect)):
            return ()
        return (f"method={step}", f"collect={collect}")

    def _recipe(self, *overrides: str) -> dict[str, Any] | None:
        from hydra.errors import MissingConfigException

        if overrides not in self._known:
            try:
                self._known[overrides] = self._compose(list(overrides))
            except (InputError, MissingConfigException):
                self._known[overrides] = None
        return self._known[overrides]


@cache
def _choices(group: str) -> frozenset[str]:
    return frozenset(options(group))


def _are_shipped(**names: str) -> bool:
    """Whether broadopt has a config of this name in each group: names come from files that anyone may have written, and
    no other reaches Hydra's grammar.
    """
    return all(name in _choices(group) for group, name in names.items())
