"""Pictures of a run under way: now and then, and never at the price of the training."""

from typing import Any

import pytest

from cluster.errors import RunError
from cprec import pretrain
from cprec.pretrain import PICTURE_RESTS, PICTURE_S, Pictures


class Clock:
    """Seconds, and what making a picture takes of them."""

    def __init__(self) -> None:
        self.now, self.takes = 1000.0, 0.0
        self.made: list[float] = []
        self.fails: Exception | None = None

    def monotonic(self) -> float:
        return self.now

    def show(self, run_uri: str, tracker: Any) -> None:
        self.made.append(self.now)
        self.now += self.takes
        if self.fails:
            raise self.fails


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pretrain, "time", clock)
    monkeypatch.setattr(pretrain, "_show", clock.show)
    return clock


def renew(pictures: Pictures, clock: Clock, seconds: int) -> None:
    """Ask for a picture every second."""
    for _ in range(seconds):
        pictures.renew()
        clock.now += 1


def test_a_picture_a_minute_the_first_after_one(clock: Clock) -> None:
    pictures = Pictures("run", Any, print)  # type: ignore[arg-type]
    renew(pictures, clock, int(3 * PICTURE_S) + 1)
    assert clock.made == [1000 + PICTURE_S, 1000 + 2 * PICTURE_S, 1000 + 3 * PICTURE_S]


def test_what_takes_long_is_made_more_rarely(clock: Clock) -> None:
    clock.takes = 5.0
    pictures = Pictures("run", Any, print)  # type: ignore[arg-type]
    renew(pictures, clock, int(PICTURE_S + 5 * PICTURE_RESTS) + 1)
    assert clock.made == [1000 + PICTURE_S, 1000 + PICTURE_S + 5 * PICTURE_RESTS]


@pytest.mark.parametrize("problem", [OSError("the store is away"), RunError("no plan.json")])
def test_storage_that_fails_costs_a_picture_and_not_the_training(clock: Clock, problem: Exception) -> None:
    said: list[str] = []
    clock.fails = problem
    pictures = Pictures("run", Any, said.append)  # type: ignore[arg-type]
    renew(pictures, clock, int(2 * PICTURE_S) + 1)
    assert said == [f"the report was not renewed: {problem}"] * 2
