"""A group of workers grows after a checkpoint, once, and shrinks at once."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import ray
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2.api.config import ScalingConfig

from cprec.config.recipe_file import validate_recipe
from cprec.config.sections.pretraining import TrainSettings
from cprec.train.distributed.driver import describe_shortage, name_lost_trainer
from cprec.train.distributed.elastic import ResizeAfterCheckpoint

CPUS = {"CPU": 1.0}


class Call:
    """A method of an actor: what `remote` returns is its result."""

    def __init__(self, results: Iterator[int]) -> None:
        self._results = results

    def remote(self) -> int:
        return next(self._results)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `ray.get` return what it is given."""
    monkeypatch.setattr(ray, "get", lambda result, timeout: result)


def decide(
    monkeypatch: pytest.MonkeyPatch, policy: ResizeAfterCheckpoint, now: int, room: int | None
) -> ScalingDecision:
    """Returns the policy's decision for a group of `now` workers; `room`: what Ray Train sees."""
    seen = NoopDecision() if room is None else ResizeDecision(room, CPUS)
    monkeypatch.setattr(
        ElasticScalingPolicy, "make_decision_for_running_worker_group", lambda *_: seen
    )
    return policy.make_decision_for_running_worker_group(SimpleNamespace(num_workers=now), None)


def policy_of(saved: list[int]) -> ResizeAfterCheckpoint:
    """Returns a policy for 1 to 4 workers whose run has one checkpoint when it is asked."""
    controller = SimpleNamespace(
        request_checkpoint=Call(iter([1])), saved_checkpoints=Call(iter(saved))
    )
    scaling = ScalingConfig(num_workers=(1, 4), resources_per_worker=CPUS)
    return ResizeAfterCheckpoint(scaling, controller, TrainSettings())


@pytest.mark.usefixtures("in_process")
def test_a_group_grows_once_after_the_checkpoint_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = policy_of([1, 1, 2])
    assert decide(monkeypatch, policy, 2, None) == NoopDecision()
    assert decide(monkeypatch, policy, 2, 3) == NoopDecision()  # asks for a checkpoint
    assert decide(monkeypatch, policy, 2, 4) == NoopDecision()  # waits; more room meanwhile
    assert decide(monkeypatch, policy, 2, None) == ResizeDecision(4, CPUS)
    assert decide(monkeypatch, policy, 4, None) == NoopDecision()


@pytest.mark.usefixtures("in_process")
def test_a_group_without_room_shrinks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decide(monkeypatch, policy_of([]), 4, 2) == ResizeDecision(2, CPUS)


@pytest.mark.usefixtures("in_process")
def test_a_group_that_shrinks_forgets_that_it_was_to_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of([1, 2])
    assert decide(monkeypatch, policy, 3, 4) == NoopDecision()
    assert decide(monkeypatch, policy, 3, 2) == ResizeDecision(2, CPUS)
    assert decide(monkeypatch, policy, 2, None) == NoopDecision()


@pytest.mark.parametrize(("cpus", "workers"), [(1.0, 0), (2.0, 0), (3.0, 1), (9.0, 4)])
def test_workers_leave_ray_data_its_cpus(
    monkeypatch: pytest.MonkeyPatch, cpus: float, workers: int
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": cpus})
    assert TrainSettings().stream_cpus == 2
    assert policy_of([])._count_possible_workers({"a node": {"CPU": 4.0}}) == workers


@pytest.mark.parametrize(
    ("keys", "resources", "said"),
    [
        ({}, {"CPU": 4.0}, None),
        ({}, {"CPU": 2.0}, "2 CPUs and 0 GPUs; 2 workers and Ray Data need 4 and 0"),
        ({"min_workers": 1}, {"CPU": 3.0}, None),
        ({"min_workers": 1}, {"CPU": 2.0}, "1 worker and Ray Data need 3 and 0"),
        ({"gpus_per_worker": 1}, {"CPU": 90.0, "GPU": 1.0}, "need 4 and 2"),
        ({"gpus_per_worker": 1}, {}, "0 CPUs and 0 GPUs"),
        ({"cpus_per_worker": 8, "stream_cpus": 16}, {"CPU": 32.0}, None),
    ],
)
def test_a_run_that_waits_for_room_says_so(
    keys: dict[str, int], resources: dict[str, float], said: str | None
) -> None:
    recipe = validate_recipe({"workers": 2, "train": keys}, "a test")
    found = describe_shortage(recipe, resources)
    assert found is None if said is None else said in (found or "")


def test_the_death_of_the_process_that_leads_the_workers_is_a_fault_that_says_so() -> None:
    error = ray.exceptions.RayActorError(error_msg="The actor died.\n\tpid: 1")
    fault = name_lost_trainer(error)
    assert "Ray Train that starts the workers died" in str(fault)
    assert "The actor died. pid: 1" in str(fault)
