"""What reading of data that is refused is held by: the line that is said, and an object that says when it is read."""

from collections.abc import Callable
from pathlib import Path

import pytest

from broadopt.data.datasets import image_folder
from broadopt.errors import InputError


def refusal_of(read: Callable[..., object], *arguments: object, **options: object) -> str:
    """The line of the InputError that `read` raises."""
    with pytest.raises(InputError) as caught:
        read(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def folder_refusal(root: Path) -> str:
    """The line with which a folder of images is refused."""
    return refusal_of(image_folder, path=root)


class Calls:
    """An object whose pickle calls `function(*arguments)` when it is read."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call
