"""A checkpoint without a valid manifest does not exist, and a run never silently starts over."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from cluster.errors import RunError
from cprec.model.training_state import TrainingState
from cprec.runs import checkpoint
from cprec.runs.checkpoint import CheckpointName
from cprec.schedule.ledger import Ledger
from cprec.schedule.plan import Plan, Portion
from cprec.schedule.planning import PlanSettings, build_plan

PLAN: Plan = build_plan(
    PlanSettings(0, 1e-5, 1e-3, 0.1), [Portion("domain/A", 0, 0, 100)], [Portion("mixed", 0, 0, 50)]
)


def state(seed: int = 0) -> TrainingState:
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"layer.{i}.lora_A": torch.randn(3, 4, generator=generator) for i in range(2)}
    return TrainingState(
        tensors, {m: {n: t * 2 for n, t in tensors.items()} for m in ("exp_avg", "exp_avg_sq")}, 7
    )


def save(run: Path, samples: int, attempt: int = 0, folder: str = "local") -> str:
    """Saves a checkpoint of a run, and returns its URI."""
    directory = run.parent / folder / f"{samples}-{attempt}"
    (directory / "adapter").mkdir(parents=True)
    (directory / "adapter" / "adapter_config.json").write_text("{}")
    checkpoint.save_training_state(state(samples), directory)
    uri = checkpoint.checkpoint_uri(str(run), CheckpointName(samples, attempt))
    checkpoint.commit(directory, uri, Ledger(PLAN, samples, samples // 10, 5))
    return uri


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    uri = save(tmp_path / "run", 30)
    checkpoint.verify(uri)
    loaded = checkpoint.load_training_state(uri)
    expected = state(30)
    assert loaded.steps == expected.steps == 7
    assert all(torch.equal(loaded.weights[n], t) for n, t in expected.weights.items())
    assert all(
        torch.equal(loaded.moments[m][n], t)
        for m, ts in expected.moments.items()
        for n, t in ts.items()
    )
    assert checkpoint.read_ledger(uri) == Ledger(PLAN, 30, 3, 5)


def test_the_newest_valid_checkpoint_is_used_and_the_problems_of_newer_ones_are_named(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    save(run, 30)
    save(run, 40, attempt=1)
    incomplete, damaged = save(run, 50), save(run, 60)
    Path(incomplete, "manifest.json").unlink()
    file = Path(damaged, "trainer", "optimizer.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    name, ignored = checkpoint.find_latest(str(run))
    assert name == CheckpointName(40, 1)
    assert len(ignored) == 2
    assert "optimizer.safetensors: sha256" in ignored[0]
    assert "never completed" in ignored[1]


def test_a_run_without_a_completed_checkpoint_starts_at_zero(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert checkpoint.find_latest(str(run)) == (None, [])
    Path(save(run, 10), "manifest.json").unlink()
    assert checkpoint.find_latest(str(run))[0] is None


def test_a_run_whose_checkpoints_are_all_corrupt_stops(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for samples in (10, 20):
        Path(save(run, samples), "ledger.json").write_text("{}")
    with pytest.raises(RunError, match=r"no valid checkpoint is left[\s\S]*ledger.json"):
        checkpoint.find_latest(str(run))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    uri = save(tmp_path / "run", 10)
    Path(uri, "adapter", "adapter_config.json").unlink()
    with pytest.raises(RunError, match=r"adapter_config.json: listed in the manifest, but missing"):
        checkpoint.verify(uri)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a checkpoint at 30 samples and one at 40."""
    run = tmp_path_factory.mktemp("fuzz") / "run"
    save(run, 30)
    save(run, 40)
    return run


def find_latest_after_damage(run: Path, name: str, content: bytes) -> int:
    """Replaces a file of the newest checkpoint and returns which one is used, in samples."""
    file = Path(checkpoint.checkpoint_uri(str(run), CheckpointName(40, 0)), name)
    before = file.read_bytes()
    try:
        file.write_bytes(content)
        used, problems = checkpoint.find_latest(str(run))
    finally:
        file.write_bytes(before)
    assert used is not None
    assert bool(problems) == (used.samples == 30)
    assert all(name in problem or "adapter" in problem for problem in problems)
    return used.samples


@given(
    st.sampled_from(["manifest.json", "ledger.json", "trainer/optimizer.safetensors"]), st.data()
)
def test_a_file_with_other_bytes_is_noticed(
    two_checkpoints: Path, name: str, data: st.DataObject
) -> None:
    uri = checkpoint.checkpoint_uri(str(two_checkpoints), CheckpointName(40, 0))
    content = Path(uri, name).read_bytes()
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(len(content), start + 40)))
    damaged = content[:start] + data.draw(st.binary(max_size=8)) + content[stop:]
    used = find_latest_after_damage(two_checkpoints, name, damaged)
    if name != "manifest.json":
        assert used == (40 if damaged == content else 30)
    elif used == 40:  # then the change means nothing: white space, or the list's own digest
        assert json.loads(damaged)["files"] == json.loads(content)["files"]


@given(JSON, st.data())
def test_a_manifest_with_another_value_is_noticed(
    two_checkpoints: Path, value: object, data: st.DataObject
) -> None:
    """Any value of the manifest, at any depth, becomes another one or is dropped."""
    uri = checkpoint.checkpoint_uri(str(two_checkpoints), CheckpointName(40, 0))
    manifest = json.loads(Path(uri, "manifest.json").read_text())
    files = manifest["files"]
    name = data.draw(st.sampled_from(sorted(files)))
    parent, key = data.draw(
        st.sampled_from(
            [({"manifest": manifest}, "manifest"), (manifest, "files"), (files, name)]
            + [(files[name], field) for field in ("size", "sha256")]
        )
    )
    assume(parent[key] != value)
    if data.draw(st.booleans()):
        del parent[key]
        content = json.dumps(manifest if key != "manifest" else None)
    else:
        parent[key] = value
        content = json.dumps(parent["manifest"] if key == "manifest" else manifest)
    assert find_latest_after_damage(two_checkpoints, "manifest.json", content.encode()) == 30


@pytest.mark.parametrize("content", ["[" * 100_000, '{"files": {}}', '{"files": null}', "\x00"])
def test_a_manifest_that_is_none_is_noticed(two_checkpoints: Path, content: str) -> None:
    assert find_latest_after_damage(two_checkpoints, "manifest.json", content.encode()) == 30


def test_a_manifest_of_an_earlier_build_is_valid(tmp_path: Path) -> None:
    uri = save(tmp_path / "run", 10)
    manifest = Path(uri, "manifest.json")
    values = json.loads(manifest.read_text())
    del values["digest"]
    manifest.write_text(json.dumps(values))
    checkpoint.verify(uri)


def test_pruning_keeps_the_newest_and_the_ends_of_phases(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for samples in (10, 20, 30, 40, 50):
        save(run, samples)
    checkpoint.prune(str(run), keep=2, phase_ends=(20, 50), last_saved=CheckpointName(50, 0))
    assert [n.samples for n in checkpoint.list_checkpoints(str(run))] == [50, 40, 20]


def test_pruning_removes_what_earlier_attempts_left_half_written_and_nothing_of_later_ones(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    complete = [CheckpointName(30, 0), CheckpointName(60, 2)]
    half_written = [CheckpointName(*pair) for pair in ((40, 0), (50, 1), (55, 3), (70, 1))]
    for name in complete + half_written:
        save(run, name.samples, name.attempt)
    for name in half_written:
        Path(checkpoint.checkpoint_uri(str(run), name), "manifest.json").unlink()
    checkpoint.prune(str(run), keep=2, phase_ends=(), last_saved=CheckpointName(60, 2))
    # 55 is of a later attempt, which may be writing it; 70 is not passed yet.
    left = {*complete, CheckpointName(55, 3), CheckpointName(70, 1)}
    assert set(checkpoint.list_checkpoints(str(run))) == left


@given(
    st.integers(1, 9),
    st.integers(1, 50),
    st.integers(1, 4),
    st.lists(st.integers(1, 120), max_size=4),
)
def test_milestones_are_saved_and_kept_whatever_else_is(
    batch: int, every: int, keep: int, milestones: list[int]
) -> None:
    """A run of 100 samples, which prunes after every checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        steps = [(start, min(start + batch, 100)) for start in range(0, 100, batch)]
        saved = []
        for before, after in steps:
            if checkpoint.is_due(before, after, every, (100, *milestones)):
                manifest = run / "checkpoints" / str(CheckpointName(after, 0)) / "manifest.json"
                manifest.parent.mkdir(parents=True)
                manifest.write_text("{}")
                saved.append(after)
                name = CheckpointName(after, 0)
                checkpoint.prune(str(run), keep, (100,), name, milestones=milestones)
        reached = {next(b for a, b in steps if b >= place) for place in milestones if place <= 100}
        left = {name.samples for name in checkpoint.list_checkpoints(str(run))}
        assert left == reached | set(saved[-keep:])


def test_pruning_never_takes_what_was_just_saved_for_the_leftovers_of_an_attempt_that_went_further(
    tmp_path: Path,
) -> None:
    """Four attempts had no room to save at 160; the fifth is stopped at 90, saves and prunes."""
    run = tmp_path / "run"
    save(run, 80)
    for attempt in range(4):
        Path(save(run, 160, attempt), "manifest.json").unlink()
    save(run, 90, attempt=4)
    checkpoint.prune(str(run), keep=2, phase_ends=(), last_saved=CheckpointName(90, 4))
    assert checkpoint.find_latest(str(run))[0] == CheckpointName(90, 4)
    assert CheckpointName(80, 0) in checkpoint.list_checkpoints(str(run))


@given(st.integers(0, 10**12), st.integers(0, 99))
def test_names_order_as_text_and_as_numbers(samples: int, attempt: int) -> None:
    name = CheckpointName(samples, attempt)
    assert CheckpointName.parse(str(name)) == name
    assert (
        CheckpointName(samples, attempt)
        < CheckpointName(samples, attempt + 1)
        < CheckpointName(samples + 1, 0)
    )


@pytest.mark.parametrize(
    "folder", ["", "x-1", "12", "12-", "-3", "12-3-4", ".12-3", "²-0", "000000000012-²", "12-3"]
)
def test_other_folders_are_no_checkpoints(folder: str) -> None:
    assert CheckpointName.parse(folder) is None


@given(st.integers(1, 50), st.integers(1, 40), st.integers(1, 300), st.integers(1, 300))
def test_checkpoints_are_due_each_so_many_samples_and_where_a_phase_ends(
    batch: int, every: int, stable: int, annealing: int
) -> None:
    ends = (stable, stable + annealing)
    steps = [
        (a, min(a + batch, stop))
        for start, stop in ((0, ends[0]), ends)
        for a in range(start, stop, batch)
    ]
    due = [after for before, after in steps if checkpoint.is_due(before, after, every, ends)]
    assert set(ends) <= set(due)
    assert all(b - a < every + batch for a, b in zip([0, *due], due, strict=False))


@pytest.mark.parametrize("name", ["../other", "adapter/../../other", "/etc/passwd", "s3://b/x"])
def test_a_manifest_that_names_a_file_outside_its_folder_is_not_used(
    tmp_path: Path, name: str
) -> None:
    run = tmp_path / "run"
    save(run, 30)
    manifest = Path(save(run, 40), "manifest.json")
    content = json.loads(manifest.read_text())
    content["files"][name] = next(iter(content["files"].values()))
    content.pop("digest", None)
    manifest.write_text(json.dumps(content))
    found, ignored = checkpoint.find_latest(str(run))
    assert found == CheckpointName(30, 0)
    assert "outside its folder" in ignored[0]
