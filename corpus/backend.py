"""The ways in which behaviours become samples: in this process, or on Ray. Both decide by the same functions and write the same files."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.say import Say
from corpus.local import append, prepare
from corpus.local.append import Given
from corpus.local.prepare import Gathered
from corpus.settings import DataSettings


class Each(Protocol):
    """`map`, or one that does the same elsewhere."""

    def __call__(self, function: Callable[[Any], Any], values: Iterable[Any], /) -> Iterable[Any]:
        """The function's results, in the order of the values."""


@dataclass(frozen=True)
class Way:
    """each: for many files; gather: all domains of a build; given: the behaviours of an append, all domains that the settings name."""

    each: Each
    gather: Callable[[DataSettings, Say], Gathered]
    given: Callable[[DataSettings], Given]


HERE = Way(map, prepare.gather, append.Read)
