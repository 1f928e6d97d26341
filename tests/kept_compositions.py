"""What the choices of a command line are composed of is worked out once a process, and the values that it gives are put
into it for each: most compositions of the tests differ in these alone.

Hydra makes a list of the files that the choices bring, merges what is in them, and puts the values in last. List and
merged config are kept, pickled, where no file but the known ones can be among them; so everyone has objects of his own.
"""

import pickle
from collections.abc import Callable, Set
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import Overrides

kept: dict[bytes, bytes] = {}


def install(known: Set[str]) -> None:
    """Keep what is composed of files in the folders `known`, which are URLs, from now on in this process."""
    config_loader_impl.create_defaults_list = _listing(config_loader_impl.create_defaults_list, known)
    ConfigLoaderImpl._compose_config_from_defaults_list = _merging(  # type: ignore[method-assign]
        ConfigLoaderImpl._compose_config_from_defaults_list, known
    )


def _sources(repo: Any, known: Set[str]) -> list[str] | None:
    """The places that configs come from, in their order; None where one of them is not known."""
    places = [source.full_path() for source in repo.get_sources()]
    return places if {place for place in places if place.startswith("file:")} <= known else None


def _listing(create: Callable[..., Any], known: Set[str]) -> Callable[..., Any]:
    def created(repo: Any, config_name: str, overrides_list: list[Any], **options: bool) -> Any:
        if (sources := _sources(repo, known)) is None:
            return create(repo, config_name, overrides_list, **options)
        given = Overrides(repo=repo, overrides_list=overrides_list)
        choices = [sorted(given.override_choices.items()), given.append_group_defaults, given.deletions]
        key = pickle.dumps((sources, config_name, choices, sorted(options.items())))
        if key not in kept:
            found = create(repo, config_name, overrides_list, **options)
            found.config_overrides = found.overrides.config_overrides = []
            kept[key] = pickle.dumps(found)
        found = pickle.loads(kept[key])
        found.config_overrides = found.overrides.config_overrides = given.config_overrides
        return found

    return created


def _merging(compose: Callable[..., Any], known: Set[str]) -> Callable[..., Any]:
    def composed(self: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> Any:
        if (sources := _sources(repo, known)) is None:
            return compose(self, defaults, repo)
        key = pickle.dumps((sources, [sorted(vars(one).items()) for one in defaults]))
        if key not in kept:
            kept[key] = pickle.dumps(compose(self, defaults, repo))
        return pickle.loads(kept[key])

    return composed
