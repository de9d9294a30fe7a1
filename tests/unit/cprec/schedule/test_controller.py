"""The controller issues every sample of the plan exactly once.

That holds across restarts, domains that join, and a stable phase that is held open or ended early.
"""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from cprec.schedule.controller import Controller, Segment, Wait
from cprec.schedule.plan import Era, Plan, Portion
from cprec.schedule.planning import PlanSettings, Replay, build_plan
from cprec.schedule.wsa import Phase
from cprec.stream.worker_batches import split_by_tokens


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    counts = draw(st.lists(st.integers(0, 300), min_size=1, max_size=4))
    domain = [Portion(f"domain/{i}", 0, 0, n) for i, n in enumerate([*counts, 1])]
    mixed = [Portion("mixed", 0, 0, draw(st.integers(0, 300)))]
    return build_plan(
        PlanSettings(draw(st.integers(0, 99)), 1e-5, 1e-3, draw(st.floats(0, 1))), domain, mixed
    )


def walk(controller: Controller, position: int) -> list[Segment]:
    """Returns all segments that a controller issues from a position on."""
    segments = []
    while isinstance(segment := controller.issue_segment(position), Segment):
        segments.append(segment)
        position = segment.stop
    return segments


@given(plans(), st.integers(1, 70), st.integers(1, 200))
def test_segments_cover_the_plan_and_never_cross_a_change_of_source(
    plan: Plan, batch: int, segment_samples: int
) -> None:
    segments = walk(Controller(plan, batch, segment_samples), 0)
    steps = [step for segment in segments for step in segment.global_batches()]
    assert [p for a, b in steps for p in range(a, b)] == list(range(plan.total_samples))
    assert all(s.era.start <= s.start < s.stop <= s.era.stop for s in segments)
    assert plan.wsa.stable_end in {stop for _, stop in steps}


@given(plans(), st.integers(1, 70), st.integers(1, 200), st.integers(1, 200), st.data())
def test_a_restart_at_any_step_goes_on_with_the_same_steps(
    plan: Plan, batch: int, before: int, after: int, data: st.DataObject
) -> None:
    steps = [
        step
        for segment in walk(Controller(plan, batch, before), 0)
        for step in segment.global_batches()
    ]
    restart = data.draw(st.sampled_from(steps))[0]
    steps_after_restart = [
        step
        for segment in walk(Controller(plan, batch, after, samples=restart), restart)
        for step in segment.global_batches()
    ]
    assert steps_after_restart == [step for step in steps if step[0] >= restart]


@given(plans(), st.integers(1, 70))
def test_each_phase_is_entered_once_in_order_and_says_why(plan: Plan, batch: int) -> None:
    controller = Controller(plan, batch, batch)
    first_phase = controller.phase
    changes = [
        c
        for segment in walk(controller, 0)
        for _, stop in segment.global_batches()
        for c in controller.advance(stop)
    ]
    order = list(Phase)
    assert [c.before for c in changes] + [changes[-1].after] == order[order.index(first_phase) :]
    assert controller.phase.is_terminal
    assert all(" -> " in str(c) and "because" in str(c) for c in changes)


def test_a_restart_does_not_enter_a_phase_again() -> None:
    plan = build_plan(
        PlanSettings(0, 1e-5, 1e-3, 0.1),
        [Portion("domain/A", 0, 0, 100)],
        [Portion("mixed", 0, 0, 50)],
    )
    controller = Controller(plan, 10, 10, samples=100)
    assert controller.phase is Phase.ANNEALING
    assert controller.advance(110) == []


@dataclass
class World:
    """A trainer in miniature.

    It trains the steps that the controller issues, reads one segment ahead, saves, crashes and
    resumes.

    Attributes:
        controller: The controller under test.
        steps: (start, stop, lr, phase, rows) of every step that was trained.
        ready: Segments that were issued and are not trained to their end.
        ends: (end of the step, S as its segment knows it) of every step.
        saved: Samples at which a checkpoint was saved.
        workers: Number of workers.
    """

    controller: Controller
    steps: list[tuple[int, int, float, Phase, list[tuple[str, int, int]]]] = field(
        default_factory=list
    )
    ready: list[Segment] = field(default_factory=list)
    ends: list[tuple[int, int]] = field(default_factory=list)
    saved: list[int] = field(default_factory=lambda: [0])
    workers: int = 1

    @property
    def samples(self) -> int:
        return self.steps[-1][1] if self.steps else 0

    def ask(self) -> bool:
        """Asks for the next segment, at most one ahead of the present one."""
        if len(self.ready) >= 2:
            return False
        segment = self.controller.issue_segment(self.ready[-1].stop if self.ready else self.samples)
        if isinstance(segment, Segment):
            self.ready.append(segment)
        return isinstance(segment, Segment)

    def train(self) -> bool:
        """Trains the next step, if there is one."""
        if not self.ready and not self.ask():
            return False
        segment = self.ready[0]
        start, stop = next((a, b) for a, b in segment.global_batches() if a >= self.samples)
        portion, row = segment.era.locate_rows(start, stop)
        rows = [
            (segment.era.all_portions[i].source, segment.era.all_portions[i].version, r)
            for i, r in zip(portion.tolist(), row.tolist(), strict=True)
        ]
        by_worker = split_by_tokens([1 + r % 7 for r in row.tolist()], self.workers)
        assert sorted(i for samples in by_worker for i in samples) == list(range(stop - start))
        self.steps.append((start, stop, segment.wsa.lr(start), segment.wsa.phase(start), rows))
        self.ends.append((stop, segment.wsa.stable_end))
        self.controller.advance(stop)
        if stop == segment.stop:
            self.ready.pop(0)
        return True

    def crash(self, at: int, batch: int, segment_samples: int) -> None:
        """Loses everything in memory; the plan on storage and the checkpoint remain."""
        old = self.controller
        self.steps = [step for step in self.steps if step[1] <= at]
        self.ends = [end for end in self.ends if end[0] <= at]
        self.saved = [s for s in self.saved if s <= at]
        self.ready = []
        self.controller = Controller(
            old.plan, batch, segment_samples, samples=at, hold=old.hold, closed=old.closed
        )


ACTIONS = st.lists(
    st.sampled_from(
        ["train"] * 8 + ["ask", "save", "crash", "append", "append", "hold", "release", "anneal"]
    ),
    min_size=5,
    max_size=80,
)


@given(plans(), ACTIONS, st.integers(1, 40), st.sampled_from([0.0, 0.3]), st.data())
def test_whatever_happens_every_planned_sample_is_trained_once_at_its_lr(
    plan: Plan, actions: list[str], batch: int, replay_fraction: float, data: st.DataObject
) -> None:
    world, version = World(Controller(plan, batch, 3 * batch)), 0
    for action in actions:
        controller = world.controller
        if action == "train":
            world.train()
        elif action == "ask":
            world.ask()
        elif action == "save":
            world.saved.append(world.samples)
        elif action == "crash":
            world.crash(
                data.draw(st.sampled_from(world.saved)), batch, data.draw(st.integers(1, 5)) * batch
            )
            world.workers = data.draw(st.integers(1, 8))
        elif action == "append" and controller.is_open:
            version += 1
            sizes = data.draw(st.tuples(st.integers(1, 60), st.integers(0, 30)))
            issued = controller.issued_samples
            consumed = {
                (p.source, p.version): p.count
                for p in controller.plan.consumed_portions(controller.join_position())
            }
            firsts = [(v, consumed.get(("text/a", v), 0)) for v in range(1, version + 1)]
            texts = [Portion("text/a", v, first, 9 - first) for v, first in firsts]
            replay = Replay(replay_fraction, tuple(p for p in texts if p.count))
            position = controller.extend_plan(
                [Portion("domain/new", version, 0, sizes[0])],
                [Portion("mixed", version, 0, sizes[1])],
                None,
                replay,
            )
            assert position >= issued
        elif action in ("hold", "release") and controller.is_open:
            controller.set_hold(action == "hold")
        elif action == "anneal" and controller.is_open and data.draw(st.booleans()):
            controller.start_annealing()
    world.controller.set_hold(False)
    while world.train():
        pass
    assert not isinstance(world.controller.issue_segment(world.samples), Wait)
    final = world.controller.plan
    assert [(a, b) for a, b, *_ in world.steps] == sorted((a, b) for a, b, *_ in world.steps)
    assert [p for a, b, *_ in world.steps for p in range(a, b)] == list(range(final.total_samples))
    trained = [row for *_, rows in world.steps for row in rows]
    assert trained == [row for era in final.eras for row in planned(era)]
    assert len(set(trained)) == len(trained)
    assert [(lr, phase) for _, _, lr, phase, _ in world.steps] == [
        (final.wsa.lr(a), final.wsa.phase(a)) for a, *_ in world.steps
    ]
    stable_end = final.wsa.stable_end
    # The workers know that the phase ends there, so that they save a checkpoint.
    assert [end for stop, end in world.ends if stop == stable_end] == [stable_end] * (
        stable_end > 0
    )
    order = list(Phase)
    phases = [order.index(phase) for *_, phase, _ in world.steps]
    assert phases == sorted(phases)
    if not world.controller.closed:
        whole = {
            (p.source, p.version, p.first + k)
            for era in final.eras
            for p in era.portions
            for k in range(p.count)
        }
        assert {(s, v, r) for s, v, r in trained if s != "text/a"} == whole


def planned(era: Era) -> list[tuple[str, int, int]]:
    """Returns (source, version, row) of every position of an era."""
    portion, row = era.locate_rows(era.start, era.stop)
    return [
        (era.all_portions[i].source, era.all_portions[i].version, r)
        for i, r in zip(portion.tolist(), row.tolist(), strict=True)
    ]
