"""A run plan is opened only if corpus, recipe and parent checkpoint fit each other."""

import json
import re
from collections import Counter
from dataclasses import replace
from math import ceil, floor
from pathlib import Path

import pytest

from cluster.errors import CorpusError, RecipeError, RunError
from corpus.append import append
from corpus.build import build
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import validate_recipe
from cprec.model.adapter_config import require_matching_adapter
from cprec.runs import checkpoint
from cprec.runs.audit import audit
from cprec.runs.run_plan import RunPlan
from cprec.runs.run_planning import create_run_plan, describe_run, resolve_run_plan
from cprec.runs.token_form import TOKEN_FORM
from cprec.schedule.ledger import Ledger, ids_digest
from cprec.schedule.plan import global_batches
from cprec.stream.segments import read_plan_rows, sample_id_reader
from cprec.workflows.pretraining.prepare import prepare_run
from tests.records import trace_row
from tests.unit.corpus.worlds import settings, shop, write_root


@pytest.mark.parametrize("together", [False, True])
def test_targets_of_one_user_need_a_corpus_in_the_order_of_users(
    tmp_path: Path, together: bool
) -> None:
    root = write_root(tmp_path / "root", shop(("A", "B", "C")))
    corpus = build(settings(root, users_together=together), 0, str(tmp_path / "corpus"), print)
    recipe = validate_recipe({"train": {"targets_per_pass": 4}}, "test")
    if together:
        assert create_run_plan(recipe, corpus).plan.total_samples == sum(
            s.rows for s in corpus.streams() if s.source in ("domain/A", "domain/B", "mixed")
        )
    else:
        with pytest.raises(CorpusError, match=r"not ordered by user.*data\.users_together: true"):
            create_run_plan(recipe, corpus)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return build(
        settings(write_root(tmp_path / "root", shop(("A", "B", "C")))),
        0,
        str(tmp_path / "corpus"),
        print,
    )


def open_run_plan(
    recipe: Recipe, run: str, corpus: Corpus, previous_recipe: Recipe | None = None
) -> RunPlan:
    """Resolves the plan of a run and writes it, as a start of the run does."""
    run_plan, _ = resolve_run_plan(recipe, run, corpus, previous_recipe)
    run_plan.write(run)
    return run_plan


def read_counts(run_plan: RunPlan, corpus: Corpus) -> dict[tuple[str, int], int]:
    """Returns how often a run reads each sample of the corpus, by source and id."""
    rows = [
        read_plan_rows(era, corpus.streams_by_key(), era.start, era.stop)
        for era in run_plan.plan.eras
        if era.stop > era.start
    ]
    pairs = ((table["source"].to_pylist(), table["sample_id"].to_pylist()) for table in rows)
    return Counter(pair for columns in pairs for pair in zip(*columns, strict=True))


def test_samples_are_read_as_often_as_epochs_and_weights_say_and_audited(corpus: Corpus) -> None:
    once = read_counts(create_run_plan(Recipe(), corpus), corpus)
    assert set(once.values()) == {1}
    weights = {"domain/A": 0, "domain/B": 1.5, "mixed": 0.5}
    recipe = validate_recipe({"schedule": {"epochs": 3, "weights": weights}}, "test")
    assert hash(recipe) == hash(recipe.model_copy(deep=True))
    run_plan = create_run_plan(recipe, corpus)
    counts = read_counts(run_plan, corpus)
    for source, passes in (("domain/A", 0), ("domain/B", 4.5), ("mixed", 1.5)):
        expected = [n for (name, _), n in counts.items() if name == source]
        rows = sum(name == source for name, _ in once)
        assert sum(expected) == round(passes * rows)
        assert {floor(passes), ceil(passes)} - {0} == set(expected)

    read_ids = sample_id_reader(corpus.streams_by_key(), run_plan.plan)
    trace = [
        trace_row(
            samples=start,
            batch_samples=stop - start,
            ids_digest=f"{ids_digest(read_ids(start, stop)):016x}",
        )
        for era in run_plan.plan.eras
        for start, stop in global_batches(era.start, era.stop, 8)
    ]
    report = audit(run_plan.plan, trace, read_ids)
    total = run_plan.plan.total_samples
    assert (report.planned, report.trained, report.missing) == (total, total, 0)
    assert report.repeated == 0


def test_a_trunk_reads_the_epochs_that_are_left(tmp_path: Path, corpus: Corpus) -> None:
    trunk = create_run_plan(Recipe(), corpus).plan
    uri = parent(tmp_path, corpus, CONFIG)
    recipe = validate_recipe({"continue_from": uri, "schedule": {"epochs": 2}}, "test")
    rest = create_run_plan(recipe, corpus).plan
    assert rest.wsa.stable_end == 2 * trunk.wsa.stable_end - 8


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"weights": dict.fromkeys(["domain/A", "domain/B", "mixed"], 0)}, "no samples to plan"),
        ({"epochs": 10**9}, r"schedule\.epochs 1000000000.*at most 3,000,000,000 samples"),
    ],
)
def test_no_samples_and_too_many_are_refused(
    corpus: Corpus, schedule: dict[str, object], message: str
) -> None:
    with pytest.raises(CorpusError, match=message):
        create_run_plan(validate_recipe({"schedule": schedule}, "test"), corpus)


@pytest.mark.parametrize(
    ("weights", "mode", "idle"),
    [
        ({"domain/Z": 2, "mixed": 1}, "wsa", "domain/Z"),
        ({"domain/Z": 0}, "wsa", "domain/Z"),
        ({"mixed": 2, "domain/A": 2}, "domain_only", "mixed"),
        ({"mixed": 2, "domain/A": 0}, "wsa", None),
        ({}, "wsa", None),
    ],
)
def test_a_weight_that_changes_nothing_is_said(
    corpus: Corpus, weights: dict[str, float], mode: str, idle: str | None
) -> None:
    recipe = validate_recipe({"schedule": {"weights": weights, "mode": mode}}, "test")
    description = describe_run(recipe, corpus, create_run_plan(recipe, corpus).plan)
    said = re.search(r"schedule.weights names (.*), of which this run reads nothing", description)
    assert (said and said[1]) == idle


def test_objectives_are_said_by_source(corpus: Corpus) -> None:
    objectives = {"domain": {"next_item": 3, "masked_item": 1}, "domain/A": {"next_history": 2}}
    schedule = {"objectives": {**objectives, "domain/Z": {"masked_item": 1}}}
    recipe = validate_recipe({"schedule": schedule}, "test")
    description = describe_run(recipe, corpus, create_run_plan(recipe, corpus).plan)
    assert (
        "objectives: next_history 100.0% of domain/A; next_item 75.0%, masked_item 25.0% of "
        "domain/B; next_item 100.0% of mixed\n"
    ) in description
    assert "schedule.objectives names domain/Z, of which this run reads nothing" in description
    plain = describe_run(Recipe(), corpus, create_run_plan(Recipe(), corpus).plan)
    assert "objectives" not in plain


def parent(tmp_path: Path, corpus: Corpus, config: dict[str, object] | None) -> str:
    """Saves a stable checkpoint of a run `trunk` on a corpus, and returns its URI.

    Args:
        tmp_path: Folder of the runs.
        corpus: The corpus.
        config: PEFT's configuration of its LoRA adapter; None: every weight was trained.
    """
    trunk = open_run_plan(Recipe(), str(tmp_path / "runs" / "trunk"), corpus)
    (tmp_path / "files" / "adapter").mkdir(parents=True)
    (tmp_path / "files" / "adapter" / "weights").write_text("")
    if config is not None:
        (tmp_path / "files" / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    uri = checkpoint.checkpoint_uri(
        str(tmp_path / "runs" / "trunk"), checkpoint.CheckpointName(8, 0)
    )
    checkpoint.commit(tmp_path / "files", uri, Ledger(trunk.plan).add_step(8, 0))
    return uri


CONFIG = {"r": 8, "lora_alpha": 32, "base_model_name_or_path": "/models/tiny-1", "revision": None}


def test_a_run_keeps_the_token_form_of_the_weights_that_it_goes_on_from(
    tmp_path: Path, corpus: Corpus
) -> None:
    uri = parent(tmp_path, corpus, CONFIG)
    recipe = Recipe(continue_from=uri, branch=True)
    assert create_run_plan(recipe, corpus).token_form == TOKEN_FORM
    trunk_uri = str(tmp_path / "runs" / "trunk")
    trunk = RunPlan.read(trunk_uri)
    assert trunk is not None
    replace(trunk, token_form=1).write(trunk_uri)
    assert create_run_plan(recipe, corpus).token_form == 1


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        ({}, CONFIG, None),
        ({}, {**CONFIG, "base_model_name_or_path": "/elsewhere/tiny-1"}, None),
        ({"adapter": "full"}, None, None),
        ({"lora_alpha": 64}, CONFIG, "model.lora_alpha: 32 in the checkpoint, 64 in this recipe"),
        ({"lora_rank": 4}, CONFIG, "model.lora_rank: 8 in the checkpoint, 4 in this recipe"),
        (
            {},
            {**CONFIG, "base_model_name_or_path": "/models/tiny-2"},
            "model.base: '/models/tiny-2' in the checkpoint, '/models/tiny-1' in this recipe",
        ),
        (
            {"revision": "main"},
            CONFIG,
            "model.revision: None in the checkpoint, 'main' in this recipe",
        ),
        (
            {"adapter": "full"},
            CONFIG,
            "model.adapter: 'lora' in the checkpoint, 'full' in this recipe",
        ),
        ({}, None, "model.adapter: 'full' in the checkpoint, 'lora' in this recipe"),
    ],
)
def test_a_parent_must_be_what_the_recipe_trains(
    tmp_path: Path,
    corpus: Corpus,
    model: dict[str, object],
    config: dict[str, object] | None,
    message: str | None,
) -> None:
    recipe, uri = validate_recipe({"model": model}, "test"), parent(tmp_path, corpus, config)
    if message is None:
        require_matching_adapter(recipe.model, "/models/tiny-1", uri)
    else:
        with pytest.raises(RunError, match=re.escape(message)):
            require_matching_adapter(recipe.model, "/models/tiny-1", uri)


def test_a_start_that_is_refused_leaves_no_run_behind(tmp_path: Path, corpus: Corpus) -> None:
    """Else the second start would find a plan, take the run for one that had begun, and train."""
    recipe = validate_recipe(
        {
            "model": {"base": "/models/tiny-1", "lora_alpha": 64},
            "continue_from": parent(tmp_path, corpus, CONFIG),
        },
        "test",
    )
    run = tmp_path / "runs" / "next"
    for _ in range(2):
        with pytest.raises(RunError, match=r"model\.lora_alpha: 32 in the checkpoint, 64 in"):
            prepare_run(recipe, str(run), corpus, (), print)
        assert not run.exists()


@pytest.mark.parametrize("mode", ["domain_only", "shuffled"])
def test_a_branch_needs_a_mode_that_anneals(tmp_path: Path, corpus: Corpus, mode: str) -> None:
    uri = parent(tmp_path, corpus, CONFIG)
    recipe = validate_recipe(
        {"schedule": {"mode": mode}, "continue_from": uri, "branch": True}, "test"
    )
    with pytest.raises(
        RecipeError, match=f"{mode} does not anneal on mixed samples; a branch needs one of wsa, "
    ):
        create_run_plan(recipe, corpus)


def test_the_stable_phase_can_be_held_or_released_at_a_restart(
    tmp_path: Path, corpus: Corpus
) -> None:
    run = str(tmp_path / "run")
    first, held = Recipe(), validate_recipe({"schedule": {"hold_open": True}}, "test")
    assert open_run_plan(first, run, corpus).hold is False
    assert open_run_plan(held, run, corpus, first).hold is True
    on_storage = RunPlan.read(run)
    assert on_storage is not None
    assert on_storage.hold is True
    assert open_run_plan(held, run, corpus, held).hold is True
    replace(on_storage, hold=False).write(run)  # as `control release` does
    assert open_run_plan(held, run, corpus, held).hold is False


def test_a_run_that_started_at_an_older_version_goes_beyond_it(
    tmp_path: Path, corpus: Corpus
) -> None:
    run, oldest = str(tmp_path / "run"), corpus
    first = open_run_plan(Recipe(), run, oldest)
    append(
        settings(write_root(tmp_path / "more", shop(("D",), seed=5)), domains=("D",), held_out=()),
        0,
        corpus.uri,
        print,
    )
    replace(first, version=1).write(run)
    assert open_run_plan(Recipe(), run, oldest).version == 1
    replace(first, version=2).write(run)
    with pytest.raises(CorpusError, match="version 2: point --corpus at that one"):
        open_run_plan(Recipe(), run, oldest)


def test_a_plan_of_an_earlier_release_goes_on_with_its_prompts(
    tmp_path: Path, corpus: Corpus
) -> None:
    run = str(tmp_path / "runs" / "small")
    assert open_run_plan(Recipe(), run, corpus).prompt_template == "table1"
    file = Path(run) / "plan.json"
    values = json.loads(file.read_text())
    del values["prompt_template"]
    file.write_text(json.dumps(values))
    run_plan, is_new = resolve_run_plan(Recipe(), run, corpus)
    assert (run_plan.prompt_template, is_new) == ("braces", False)
    file.write_text(json.dumps({**values, "prompt_template": "table9"}))
    with pytest.raises(RunError, match="damaged"):
        RunPlan.read(run)
