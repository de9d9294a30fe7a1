"""The plan holds every sample exactly once, in one order, evenly mixed, at any size."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cprec.schedule.ledger import Ledger, ids_digest
from cprec.schedule.passes import Passes
from cprec.schedule.plan import BLOCK_ROWS, Era, Plan, Portion, global_batches, permute_rows
from cprec.schedule.planning import (
    PlanSettings,
    Replay,
    build_plan,
    extend_plan,
    start_annealing,
)
from cprec.schedule.wsa import Mode

portions = st.lists(
    st.builds(
        Portion,
        st.sampled_from(["domain/A", "domain/B", "mixed"]),
        st.integers(0, 3),
        st.integers(0, 50),
        st.integers(0, 400),
    ),
    min_size=1,
    max_size=6,
)


def era_of(start: int, ps: list[Portion], seed: int) -> Era:
    return Era(start, start + sum(p.count for p in ps), tuple(ps), seed)


eras = st.builds(era_of, st.integers(0, 1000), portions, st.integers(0, 1 << 62))


def everything(era: Era) -> list[tuple[int, int]]:
    return sorted((i, p.first + k) for i, p in enumerate(era.portions) for k in range(p.count))


@given(eras)
def test_an_era_gives_every_row_once(era: Era) -> None:
    portion, row = era.locate_rows(era.start, era.stop)
    assert sorted(zip(portion.tolist(), row.tolist(), strict=True)) == everything(era)


@given(eras, st.data())
def test_any_part_of_the_order_is_the_same_computed_alone(era: Era, data: st.DataObject) -> None:
    a, b = sorted(data.draw(st.tuples(*[st.integers(era.start, era.stop)] * 2)))
    whole, part = era.locate_rows(era.start, era.stop), era.locate_rows(a, b)
    for whole_array, part_array in zip(whole, part, strict=True):
        assert np.array_equal(whole_array[a - era.start : b - era.start], part_array)


def rows_of(era: Era, start: int, stop: int) -> list[tuple[str, int, int]]:
    """Returns (source, version, row) of every position in start .. stop - 1."""
    portion, row = era.locate_rows(start, stop)
    return [
        (era.all_portions[i].source, era.all_portions[i].version, r)
        for i, r in zip(portion.tolist(), row.tolist(), strict=True)
    ]


@given(eras, st.data())
def test_a_truncated_era_and_its_remaining_portions_make_the_whole(
    era: Era, data: st.DataObject
) -> None:
    position = data.draw(st.integers(era.start, era.stop))
    head = era.truncate(position)
    assert rows_of(head, era.start, position) == rows_of(era, era.start, position)
    remaining = [
        (p.source, p.version, p.first + k)
        for p in era.remaining_portions(position)
        for k in range(p.count)
    ]
    whole = [(p.source, p.version, p.first + k) for p in era.portions for k in range(p.count)]
    assert sorted(rows_of(head, era.start, position) + remaining) == sorted(whole)


@given(eras, st.data())
def test_no_stretch_is_one_domain(era: Era, data: st.DataObject) -> None:
    """Any stretch has its fraction of each portion, up to one row per portion for rounding."""
    a, b = sorted(data.draw(st.tuples(*[st.integers(era.start, era.stop)] * 2)))
    counts = np.diff(era.rows_before(np.array([a, b])), axis=1)[:, 0]
    for portion, count in zip(era.portions, counts.tolist(), strict=True):
        expected = portion.count * (b - a) / max(era.portion_rows, 1)
        assert abs(count - expected) <= len(era.portions)


def test_the_seed_moves_the_order_but_not_its_content() -> None:
    ps = (Portion("domain/A", 0, 0, 300), Portion("domain/B", 0, 0, 200))
    first, second = (Era(0, 500, ps, seed).locate_rows(0, 500) for seed in (1, 2))
    assert not np.array_equal(first[0], second[0])
    assert np.bincount(first[0]).tolist() == np.bincount(second[0]).tolist() == [300, 200]


def test_a_billion_samples_are_planned_a_segment_at_a_time() -> None:
    era = era_of(
        0,
        [
            Portion(f"domain/{i}", 0, 0, n)
            for i, n in enumerate([400_000_000, 300_000_000, 299_999_999, 1])
        ],
        7,
    )
    portion, row = era.locate_rows(999_990_000, 1_000_000_000)
    assert len(set(zip(portion.tolist(), row.tolist(), strict=True))) == 10_000
    assert row.max() == 399_999_999


@given(st.integers(0, 5 * BLOCK_ROWS + 17), st.integers(0, 1 << 40))
def test_permuting_a_stream_is_a_bijection_that_keeps_blocks(total: int, seed: int) -> None:
    moved = permute_rows(np.arange(total), total, seed, "domain/A", 0)
    assert np.array_equal(np.sort(moved), np.arange(total))
    for start in range(0, total, BLOCK_ROWS):
        assert np.all(np.diff(moved[start : start + BLOCK_ROWS]) == 1)


@given(st.integers(1, 3 * BLOCK_ROWS), st.integers(0, 1 << 40), st.data())
def test_each_pass_over_a_stream_reads_every_row_once(
    total: int, seed: int, data: st.DataObject
) -> None:
    rows = np.arange(3 * total)
    moved = permute_rows(rows, total, seed, "domain/A", 0)
    assert np.array_equal(moved[:total], permute_rows(rows[:total], total, seed, "domain/A", 0))
    for number in range(3):
        in_pass = moved[number * total : (number + 1) * total]
        assert np.array_equal(np.sort(in_pass), np.arange(total))
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, 3 * total)] * 2)))
    part = permute_rows(rows[start:stop], total, seed, "domain/A", 0)
    assert np.array_equal(part, moved[start:stop])


def test_passes_have_different_orders() -> None:
    total = 9 * BLOCK_ROWS
    moved = permute_rows(np.arange(3 * total), total, 0, "domain/A", 0).reshape(3, total)
    assert all((a != b).any() for a, b in pairwise(moved))


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 64))
def test_batches_cover_all_positions(start: int, length: int, size: int) -> None:
    batches = list(global_batches(start, start + length, size))
    assert [p for a, b in batches for p in range(a, b)] == list(range(start, start + length))
    assert all(b - a == size for a, b in batches[:-1])


nonempty = portions.filter(lambda ps: sum(p.count for p in ps) > 0)
caps = st.one_of(st.none(), st.integers(1, 500))


@given(nonempty, portions, st.floats(0, 1), caps)
def test_a_plan_reads_domains_up_to_s_and_mixed_samples_up_to_a(
    domain: list[Portion], mixed: list[Portion], fraction: float, cap: int | None
) -> None:
    plan = build_plan(PlanSettings(3, 1e-5, 1e-3, fraction, cap), domain, mixed)
    total = sum(p.count for p in domain)
    assert plan.wsa.stable_end == min(total, cap or total)
    assert plan.wsa.warmup_end == round(fraction * plan.wsa.stable_end)
    assert (
        plan.total_samples - plan.wsa.stable_end
        == sum(p.count for p in mixed) * plan.wsa.stable_end // total
    )
    assert sum(plan.count_by_stream(0, plan.total_samples).values()) == plan.total_samples
    assert all(a.stop == b.start for a, b in pairwise(plan.eras))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@given(nonempty, portions, nonempty, portions, caps, st.data())
def test_joining_samples_mix_with_the_rest_and_what_was_trained_stays(
    domain: list[Portion],
    mixed: list[Portion],
    more: list[Portion],
    more_mixed: list[Portion],
    cap: int | None,
    data: st.DataObject,
) -> None:
    before = build_plan(PlanSettings(3, 1e-5, 1e-3, 0.1, cap), domain, mixed)
    at = data.draw(st.integers(before.wsa.warmup_end, before.wsa.stable_end))
    new = [Portion(p.source, p.version + 9, p.first, p.count) for p in more]
    new_mixed = [Portion("mixed", p.version + 9, p.first, p.count) for p in more_mixed]
    after = extend_plan(before, at, new, new_mixed, cap)
    assert [
        r for e in after.domain_eras for r in rows_of(e, e.start, min(e.stop, at)) if e.start < at
    ] == rows_of(before.domain_eras[0], 0, at)
    total = sum(p.count for p in (*domain, *new))
    assert after.wsa.stable_end == (total if cap is None else max(min(total, cap), at))
    assert after.wsa.warmup_end == before.wsa.warmup_end
    assert after.annealing_samples >= before.annealing_samples
    if cap is None:
        assert after.annealing_samples == sum(p.count for p in (*mixed, *new_mixed))
        whole = [
            (p.source, p.version, p.first + k) for p in (*domain, *new) for k in range(p.count)
        ]
        assert sorted(r for e in after.domain_eras for r in rows_of(e, e.start, e.stop)) == sorted(
            whole
        )


weights = st.sampled_from([0, 0.1, 0.5, 1, 1.7, 3])


@given(
    st.lists(st.tuples(st.integers(1, 60), weights), min_size=2, max_size=4),
    st.integers(1, 4),
    st.data(),
)
def test_every_row_is_read_as_often_as_epochs_and_weights_say(
    sizes: list[tuple[int, float]], epochs: int, data: st.DataObject
) -> None:
    *domains, mixed = (
        (f"domain/{i}", rows, weight) for i, (rows, weight) in enumerate([*sizes, (30, 0.5)])
    )
    passes = Passes(epochs, {name: weight for name, _, weight in (*domains, mixed)})

    def portion(name: str, rows: int, weight: float) -> Portion:
        count = passes.total_rows(name, rows)
        assert abs(count - epochs * weight * rows) <= 0.5 + 1e-9
        return Portion(name, 0, 0, count)

    start, *joining = (portion(*domain) for domain in domains)
    assume(start.count)
    plan = build_plan(PlanSettings(3, 1e-5, 1e-3, 0), [start], [portion(*mixed)])
    for one in joining:
        first = plan.domain_eras[-1].start
        position = data.draw(st.integers(first, plan.wsa.stable_end))
        plan = extend_plan(plan, position, [one], [], None)
    read: Counter[tuple[str, int]] = Counter()
    for era in plan.eras:
        for name, _, row in rows_of(era, era.start, era.stop):
            read[name, row] += 1
    for name, rows, _ in (*domains, mixed):
        # Rows are counted on from pass to pass, and each of those is read once.
        total = passes.total_rows(name, rows)
        assert [read[name, row] for row in range(total + 1)] == [1] * total + [0]


@given(nonempty, portions, st.data())
def test_annealing_early_keeps_what_was_trained_and_leaves_the_rest(
    domain: list[Portion], mixed: list[Portion], data: st.DataObject
) -> None:
    plan = build_plan(PlanSettings(3, 1e-5, 1e-3, 0.1), domain, mixed)
    at = data.draw(st.integers(plan.wsa.warmup_end, plan.wsa.stable_end))
    early = start_annealing(plan, at)
    assert early.wsa.stable_end == at
    assert rows_of(early.domain_eras[-1], 0, at) == rows_of(plan.domain_eras[-1], 0, at)
    assert sum(p.count for p in early.consumed_portions(at)) == at


def test_a_branch_anneals_from_its_first_sample_and_remembers_its_trunk() -> None:
    trunk = build_plan(
        PlanSettings(3, 1e-5, 1e-3, 0.1),
        [Portion("domain/A", 0, 0, 100)],
        [Portion("mixed", 0, 0, 50)],
    )
    plan = build_plan(
        PlanSettings(3, 1e-5, 1e-3, 0.1, 7).for_branch(),
        (),
        [Portion("mixed", 0, 0, 50)],
        trunk.consumed_portions(60),
    )
    assert (plan.wsa.stable_end, plan.total_samples, plan.wsa.lr(0)) == (0, 50, 1e-3)
    assert plan.consumed_portions(10) == (Portion("domain/A", 0, 0, 60), Portion("mixed", 0, 0, 10))


texts = st.lists(
    st.builds(
        Portion,
        st.sampled_from(["text/a", "text/b"]),
        st.integers(4, 5),
        st.integers(0, 9),
        st.integers(1, 200),
    ),
    max_size=3,
)
fractions = st.floats(0.01, 0.9)


def text_rows(plan: Plan, stop: int) -> list[tuple[str, int, int]]:
    return [
        r
        for e in plan.domain_eras
        for r in rows_of(e, e.start, max(e.start, min(e.stop, stop)))
        if r[0].startswith("text/")
    ]


@given(nonempty, portions, texts, fractions, caps)
def test_replayed_text_is_a_fraction_of_the_samples_up_to_s_and_moves_nothing_else(
    domain: list[Portion],
    mixed: list[Portion],
    text: list[Portion],
    fraction: float,
    cap: int | None,
) -> None:
    text = [Portion(f"{p.source}{i}", p.version, p.first, p.count) for i, p in enumerate(text)]
    settings = PlanSettings(3, 1e-5, 1e-3, 0.1, cap)
    without = build_plan(settings, domain, mixed)
    plan = build_plan(settings, domain, mixed, replay=Replay(fraction, tuple(text)))
    replayed = text_rows(plan, plan.total_samples)
    samples = without.wsa.stable_end
    assert (
        len(replayed)
        == plan.wsa.stable_end - samples
        == min(round(samples * fraction / (1 - fraction)), sum(p.count for p in text))
    )
    assert len(set(replayed)) == len(replayed)
    assert set(replayed) <= {
        (p.source, p.version, p.first + k) for p in text for k in range(p.count)
    }
    # The same other samples in the same order, before S and after it.
    others = [
        r
        for e in plan.domain_eras
        for r in rows_of(e, e.start, e.stop)
        if not r[0].startswith("text/")
    ]
    assert others == [r for e in without.domain_eras for r in rows_of(e, e.start, e.stop)]
    assert (
        plan.total_samples - plan.wsa.stable_end == without.total_samples - without.wsa.stable_end
    )
    assert sum(plan.count_by_stream(0, plan.total_samples).values()) == plan.total_samples
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@given(nonempty, texts, fractions, st.data())
def test_replayed_text_is_spread_evenly(
    domain: list[Portion], text: list[Portion], fraction: float, data: st.DataObject
) -> None:
    plan = build_plan(
        PlanSettings(3, 1e-5, 1e-3, 0.1), domain, [], replay=Replay(fraction, tuple(text))
    )
    a, b = sorted(data.draw(st.tuples(*[st.integers(0, plan.wsa.stable_end)] * 2)))
    era = plan.domain_eras[0]
    count = era.replayed_rows_before(b) - era.replayed_rows_before(a)
    expected = era.replayed_rows_before(era.stop) * (b - a) / max(era.stop, 1)
    assert abs(count - expected) <= max(len(text), 1)


@given(nonempty, nonempty, texts, texts, fractions, caps, st.data())
def test_text_joins_and_none_is_trained_twice(
    domain: list[Portion],
    more: list[Portion],
    text: list[Portion],
    more_text: list[Portion],
    fraction: float,
    cap: int | None,
    data: st.DataObject,
) -> None:
    text = [Portion(f"text/old{i}", 0, 0, p.count) for i, p in enumerate(text)]
    before = build_plan(
        PlanSettings(3, 1e-5, 1e-3, 0.1, cap), domain, [], replay=Replay(fraction, tuple(text))
    )
    at = data.draw(st.integers(before.wsa.warmup_end, before.wsa.stable_end))
    consumed = {p.source: p.count for p in before.consumed_portions(at)}
    firsts = [(p, consumed.get(p.source, 0)) for p in text]
    unread = [Portion(p.source, 0, first, p.count - first) for p, first in firsts]
    unread += [Portion(f"text/new{i}", 1, 0, p.count) for i, p in enumerate(more_text)]
    new = [Portion(p.source, p.version + 9, p.first, p.count) for p in more]
    after = extend_plan(
        before, at, new, [], cap, Replay(fraction, tuple(p for p in unread if p.count))
    )
    assert text_rows(after, at) == text_rows(before, at)
    replayed = text_rows(after, after.total_samples)
    assert len(set(replayed)) == len(replayed)
    total = sum(p.count for p in (*domain, *new))
    others = after.wsa.stable_end - len(replayed)
    assert others == (
        total if cap is None else max(min(total, cap), at - len(text_rows(before, at)))
    )
    rest = others - (at - len(text_rows(before, at)))
    windows = len(replayed) - len(text_rows(before, at))
    available = sum(p.count for p in unread)
    assert windows == min(round(rest * fraction / (1 - fraction)), available)
    early = start_annealing(before, at)
    assert text_rows(early, at) == text_rows(before, at)


def test_a_plan_written_before_there_was_replay_is_read() -> None:
    plan = build_plan(
        PlanSettings(3, 1e-5, 1e-3, 0.1),
        [Portion("domain/A", 0, 0, 100)],
        [Portion("mixed", 0, 0, 50)],
    )
    values = json.loads(json.dumps(plan.to_json()))
    for era in values["eras"]:
        del era["replayed"], era["spread"]
    assert Plan.from_json(values) == plan


@pytest.mark.parametrize(
    ("mode", "domain", "mixed"),
    [
        (Mode.DOMAIN_ONLY, 100, 0),
        (Mode.SHUFFLED, 150, 0),
        (Mode.NO_DECAY, 100, 50),
        (Mode.COSINE, 100, 50),
    ],
)
def test_a_mode_decides_what_is_read_up_to_s_and_after(mode: Mode, domain: int, mixed: int) -> None:
    plan = build_plan(
        PlanSettings(3, 1e-5, 1e-3, 0.1, None, mode),
        [Portion("domain/A", 0, 0, 100)],
        [Portion("mixed", 0, 0, 50)],
    )
    assert (plan.wsa.stable_end, plan.total_samples - plan.wsa.stable_end) == (domain, mixed)


def test_a_plan_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples to plan"):
        build_plan(PlanSettings(0, 1e-5, 1e-3, 0.05), [], [])


@given(st.lists(st.lists(st.integers(0, (1 << 64) - 1), max_size=5), max_size=8))
def test_the_ledger_adds_up_and_survives_a_round_trip(steps: list[list[int]]) -> None:
    plan = build_plan(PlanSettings(0, 1e-5, 1e-3, 0.05), [Portion("domain/A", 0, 0, 100)], [])
    ledger = Ledger(plan)
    for ids in steps:
        ledger = ledger.add_step(len(ids), ids_digest(ids))
    assert (ledger.samples, ledger.steps) == (sum(map(len, steps)), len(steps))
    assert ledger.digest == ids_digest(i for ids in steps for i in ids)
    again = Ledger.from_json(json.loads(json.dumps(ledger.to_json())))
    assert again == ledger
    assert again.fingerprint() == ledger.fingerprint()
