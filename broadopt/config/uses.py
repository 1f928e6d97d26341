"""Values that change nothing, and would be recorded as another run."""

from collections.abc import Mapping, Sequence

from omegaconf import DictConfig, OmegaConf

from broadopt.config.identity import public
from broadopt.config.rules import NEEDED_BY_TAIL, TAKEN_BY_SHAPE
from broadopt.config.run_config import Recipe
from broadopt.errors import InputError

USED_BY: Mapping[str, Mapping[str, Sequence[str]]] = {
    "tail": {tail: (*keys, "start") for tail, keys in NEEDED_BY_TAIL.items()},
    "shape": {shape: keys if shape == "constant" else (*keys, "decay_over") for shape, keys in TAKEN_BY_SHAPE.items()},
}
"""Keys of the schedule that one of its choices, by its name, makes use of."""

NOT_NULL = ("start", "decay_over")
"""Those that have no null."""


def check_use(schedule: DictConfig, recipe: Recipe) -> None:
    """Raise InputError for a value that changes nothing and would be recorded as another run. What stands in a protocol
    for another tail or shape than the chosen one was not given for this run, and stays; what is stored is not checked.
    """
    if "num_classes" in recipe.model.target:
        raise InputError("model.num_classes: the number of classes is that of the data set; expected no such key")
    if public(str(schedule.get("_target_"))) != "broadopt.schedule.Schedule":
        return
    for decided_by, users in USED_BY.items():
        chosen = recipe.schedule.get(decided_by)
        if chosen is not None and (not isinstance(chosen, str) or chosen not in users):
            continue  # the schedule says which there are
        for key in dict.fromkeys(key for keys in users.values() for key in keys):
            given, has_use = recipe.schedule.get(key), chosen is not None and key in users[chosen]
            if given is not None and not has_use and not OmegaConf.is_interpolation(schedule, key):
                having = " or ".join(name for name, keys in users.items() if key in keys)
                without = "it left out" if key in NOT_NULL else f"schedule.{key}=null"
                raise InputError(
                    f"schedule.{key}={given:g}: schedule.{decided_by}={chosen or 'null'} has no use for it; expected "
                    f"{without}, or schedule.{decided_by}={having} with it"
                )
