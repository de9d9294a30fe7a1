"""The schedule: the learning rate (paper Eq. 2, 3) and the phase at every sample."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprec.schedule.wsa import WSA, Mode, Phase


@st.composite
def schedules(draw: st.DrawFn) -> WSA:
    low = draw(st.floats(1e-8, 1e-2))
    high = draw(st.floats(low, 1.0))
    ends = sorted(draw(st.tuples(*[st.integers(0, 10_000)] * 3)))
    return WSA(low, high, ends[0], ends[1], ends[2], draw(st.sampled_from(Mode)))


@given(schedules(), st.data())
def test_lr_stays_between_the_bounds_and_rises_holds_falls(wsa: WSA, data: st.DataObject) -> None:
    a, b = sorted(data.draw(st.tuples(*[st.integers(0, wsa.annealing_end)] * 2)))
    lrs = wsa.lr(a), wsa.lr(b)
    assert all(wsa.lr_min * (1 - 1e-12) <= lr <= wsa.lr_max * (1 + 1e-12) for lr in lrs)
    if b <= wsa.warmup_end:
        assert lrs[0] <= lrs[1] * (1 + 1e-12)
    elif wsa.warmup_end <= a and b <= wsa.stable_end and wsa.mode not in (Mode.COSINE, Mode.LINEAR):
        assert lrs == (wsa.lr_max, wsa.lr_max)
    elif a >= wsa.warmup_end:
        assert lrs[0] >= lrs[1] * (1 - 1e-12)


@given(schedules())
def test_phases_follow_each_other_and_end(wsa: WSA) -> None:
    order = list(Phase)
    phases = [
        order.index(wsa.phase(s))
        for s in range(0, wsa.annealing_end + 1, max(wsa.annealing_end // 50, 1))
    ]
    assert phases == sorted(phases)
    assert wsa.phase(wsa.annealing_end).is_terminal
    assert not any(
        wsa.phase(s).is_terminal
        for s in range(0, wsa.annealing_end, max(wsa.annealing_end // 50, 1))
    )


def test_the_papers_equations_at_known_points() -> None:
    wsa = WSA(5e-6, 5e-4, warmup_end=100, stable_end=1000, annealing_end=2000)
    assert wsa.lr(0) == 5e-6
    assert wsa.lr(50) == pytest.approx((5e-6 + 5e-4) / 2, rel=1e-12)
    assert wsa.lr(100) == wsa.lr(1000) == 5e-4
    assert wsa.lr(1500) == pytest.approx((5e-6 + 5e-4) / 2, rel=1e-12)
    assert wsa.lr(2000) == pytest.approx(5e-6, rel=1e-12)
    assert wsa.lr(1250) == pytest.approx(
        5e-6 + (1 + math.cos(math.pi / 4)) / 2 * (5e-4 - 5e-6), rel=1e-12
    )


def test_without_warmup_or_annealing_the_lr_is_the_highest() -> None:
    wsa = WSA(1e-6, 1e-3, 0, 10, 10)
    assert [wsa.lr(s) for s in range(11)] == [1e-3] * 11


@pytest.mark.parametrize(
    "arguments",
    [
        (0.0, 1.0, 0, 1, 2),
        (2.0, 1.0, 0, 1, 2),
        (0.1, 1.0, 2, 1, 3),
        (0.1, 1.0, 0, 3, 2),
        (0.1, 1.0, -1, 1, 2),
    ],
)
def test_impossible_schedules_are_refused(
    arguments: tuple[float, float, int, int, int],
) -> None:
    with pytest.raises(ValueError, match="must satisfy"):
        WSA(*arguments)


def test_samples_outside_of_the_schedule_are_refused() -> None:
    wsa = WSA(0.1, 1.0, 1, 2, 3)
    for samples in (-1, 4):
        with pytest.raises(ValueError, match="outside"):
            wsa.lr(samples)


@pytest.mark.parametrize(
    ("mode", "half", "end"),
    [
        (Mode.WSA, 0.5, 0.0),
        (Mode.NO_DECAY, 1.0, 1.0),
        (Mode.COSINE, (1 + math.cos(math.pi * 1400 / 1900)) / 2, 0.0),
        (Mode.LINEAR, 500 / 1900, 0.0),
        (Mode.WSD, ((5e-4 * 5e-6) ** 0.5 - 5e-6) / (5e-4 - 5e-6), 0.0),
    ],
)
def test_each_mode_falls_by_its_formula(mode: Mode, half: float, end: float) -> None:
    wsa = WSA(5e-6, 5e-4, 100, 1000, 2000, mode)
    assert wsa.lr(1500) == pytest.approx(5e-6 + half * (5e-4 - 5e-6), rel=1e-9)
    assert wsa.lr(2000) == pytest.approx(5e-6 + end * (5e-4 - 5e-6), rel=1e-9)
