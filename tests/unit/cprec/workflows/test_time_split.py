"""A log that is appended day by day, and models that were trained up to one of the days."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import CorpusError, RecipeError, RunError
from corpus.append import append
from corpus.build import build
from corpus.sampling.source import Source
from corpus.settings import DataSettings, day_start
from corpus.store.tables import Corpus, newest_timestamp
from cprec.config.recipe import Recipe
from cprec.config.recipe_file import validate_recipe
from cprec.config.sections.evaluation import EvaluateSettings
from cprec.config.sections.finetuning import FinetuneSettings
from cprec.downstream.llara import build_plan
from cprec.downstream.trial_records import HISTORY_FILE
from cprec.runs import checkpoint
from cprec.schedule.ledger import Ledger
from cprec.tracking.registry import Registry
from cprec.workflows.evaluation.plan import load_samples, plan_evaluation
from cprec.workflows.evaluation.time_split import check_trained_before, select_days
from tests.unit.corpus.worlds import settings, shop, write_root

DAY = 86_400
FIRST_DAY = 10  # 1970-01-11


def day(number: int) -> str:
    return f"1970-01-{number + 1:02d}"


@given(
    times=st.lists(st.integers(0, 5 * DAY), min_size=1, max_size=20),
    first=st.integers(0, 4),
    length=st.integers(0, 2),
    open_end=st.booleans(),
)
def test_samples_are_those_of_the_days(
    times: list[int], first: int, length: int, open_end: bool
) -> None:
    samples = pa.table({"timestamp": times})
    chosen = EvaluateSettings(from_day=day(first), to_day=None if open_end else day(first + length))
    expected = [t for t in times if first <= t // DAY and (open_end or t // DAY <= first + length)]
    assert select_days(samples, EvaluateSettings()) is samples
    if expected:
        assert select_days(samples, chosen)["timestamp"].to_pylist() == expected
    else:
        with pytest.raises(CorpusError, match=r"no test sample of 1970-01-.*there are some from"):
            select_days(samples, chosen)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"from_day": "27.11.2026"}, "isoformat"),
        ({"from_day": "20261127"}, "a day is written as 2026-11-27"),
        ({"from_day": "2026-02-30"}, "day"),
        ({"to_day": "2026-11-27"}, "needs evaluate.from_day"),
        ({"from_day": "2026-11-27", "to_day": "2026-11-26"}, "needs evaluate.from_day"),
        ({"from_day": "2026-11-27", "candidates": "catalogue"}, "candidates: sampled"),
    ],
)
def test_days_that_are_no_split_by_time_are_refused(keys: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        validate_recipe({"evaluate": keys}, "the test")


def test_days_have_a_name() -> None:
    days = [
        EvaluateSettings(from_day=first, to_day=last).days
        for first, last in (
            (None, None),
            ("2026-11-27", "2026-11-27"),
            ("2026-11-27", None),
            ("2026-11-27", "2026-11-30"),
        )
    ]
    assert days == ["", "2026-11-27", "2026-11-27 on", "2026-11-27 to 2026-11-30"]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of three days, of which every user buys four or so items a day."""
    world = shop(("A", "B"), users=40, seed=3)
    rows = {
        domain: [
            (user, item, (FIRST_DAY + number % 3) * DAY + number % DAY)
            for number, (user, item, _) in enumerate(domain_rows * 2)
        ]
        for domain, domain_rows in world.items()
    }
    return write_root(tmp_path_factory.mktemp("log"), rows)


def up_to(log: Path, number: int | None) -> DataSettings:
    until = None if number is None else day(number)
    return settings(log, domains=("A", "B"), held_out=(), until_day=until)


@pytest.fixture(scope="module")
def corpus(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A corpus with a version for each day."""
    uri = str(tmp_path_factory.mktemp("corpus") / "corpus")
    build(up_to(log, FIRST_DAY), 0, uri, print)
    append(up_to(log, FIRST_DAY + 1), 0, uri, print)
    return append(up_to(log, None), 0, uri, print)


def test_a_version_holds_the_log_up_to_its_day(log: Path, corpus: Corpus) -> None:
    assert corpus.version == 2
    for split in ("train", "validation", "test"):
        for stream in corpus.streams(split):
            samples = corpus.read_samples(stream.source, split)
            times = [t for t in samples["timestamp"].to_pylist() if t // DAY == FIRST_DAY + 2]
            assert newest_timestamp(stream) < (FIRST_DAY + stream.version + 1) * DAY
            assert times or split != "test"
    dropped = corpus.commits[0].metadata["statistics"]["dropped"]
    assert dropped["after_until_day"] > 0
    assert append(up_to(log, FIRST_DAY + 1), 0, corpus.uri, print).version == 1


def test_a_user_counts_once_with_the_newest_sample(corpus: Corpus) -> None:
    def scored(corpus: Corpus, **keys: object) -> dict[str, int]:
        recipe = Recipe.model_validate({"corpus": corpus.uri, "evaluate": {"domain": "A", **keys}})
        recipe = recipe.model_copy(update={"corpus_version": corpus.version})
        samples = load_samples(recipe)[2]
        ids = samples["sample_id"].to_numpy().view(np.uint64)
        assert (ids[1:] > ids[:-1]).all()
        users = samples["user_id"].to_pylist()
        assert len(set(users)) == len(users)
        return dict(zip(users, samples["timestamp"].to_pylist(), strict=True))

    def newest(corpus: Corpus) -> dict[str, int]:
        samples = corpus.read_samples("domain/A", "test")
        rows = zip(samples["timestamp"].to_pylist(), samples["user_id"].to_pylist(), strict=True)
        return {user: time for time, user in sorted(rows)}

    assert len(corpus.read_samples("domain/A", "test")) > len(newest(corpus))
    assert scored(corpus) == newest(corpus)
    few = scored(corpus, max_users=7)
    assert len(few) == 7
    assert few.items() <= newest(corpus).items()
    yesterday = day(FIRST_DAY + 1)
    assert (
        scored(corpus, from_day=yesterday, to_day=yesterday).items()
        <= newest(Corpus.open(corpus.uri, 1)).items()
    )
    first = Corpus.open(corpus.uri, 0)
    assert len(scored(first)) == len(first.read_samples("domain/A", "test"))


@pytest.mark.parametrize("bought", [4, 5, 6])
def test_a_baseline_is_refused_for_what_it_reads_of_new_users(bought: int, tmp_path: Path) -> None:
    """With 4 or 5 purchases users have no training sample, and their first ones are trained on."""

    rows = [(f"u{u}", f"A{(u + n) % 30:02d}", n * DAY) for u in range(30) for n in range(8)]
    rows += [
        (f"v{u}", f"A{(u + n) % 30:02d}", (20 + n) * DAY) for u in range(9) for n in range(bought)
    ]
    data = settings(write_root(tmp_path / "root", {"A": rows}), domains=("A",), held_out=())
    corpus = build(data, 0, str(tmp_path / "corpus"), print)
    for model in ("popularity", "sasrec", "llara-untuned"):
        with pytest.raises(RunError, match=r"was trained on interactions .* or leave this one out"):
            plan(corpus, tmp_path, ["base", model], 20)


def test_a_baseline_of_earlier_days_is_allowed(tmp_path: Path) -> None:
    """A history of two items, of which the second is held out, is no sequence."""
    rows = [(f"u{u}", f"A{(u + n) % 30:02d}", n * DAY) for u in range(30) for n in range(8)]
    rows += [(f"v{u}", f"A{(u + n) % 30:02d}", (20 + n) * DAY) for u in range(9) for n in range(3)]
    data = settings(
        write_root(tmp_path / "root", {"A": rows}), domains=("A",), held_out=(), min_history=2
    )
    corpus = build(data, 0, str(tmp_path / "corpus"), print)
    told = plan(corpus, tmp_path, ["popularity", "sasrec"], 20)
    # The validation target of the others, by which sasrec stops early.
    for model in ("popularity", "sasrec"):
        assert f"{model}: trained on interactions up to {day(6)} 00:00 UTC" in told


def plan(corpus: Corpus, folder: Path, models: list[str], from_day: int) -> list[str]:
    """Plans an evaluation of models, and returns what it says."""
    recipe = Recipe.model_validate(
        {
            "corpus": corpus.uri,
            "storage": str(folder / "runs"),
            "evaluate": {"domain": "A", "from_day": day(from_day)},
        }
    )
    registry = Registry(f"sqlite:///{folder}/mlflow.db", "cprec", "cprec")
    told: list[str] = []
    planned = plan_evaluation(recipe, registry, models, told.append)
    times = planned.samples["timestamp"].to_pylist()
    assert times
    assert min(times) >= day_start(day(from_day))
    return told


def trained(folder: Path, version: int) -> str:
    """Writes a checkpoint of a model that was trained on domain A up to a corpus version."""
    plan = build_plan(Source.parse("domain/A"), version, 50, 1e-3, FinetuneSettings(), 0)
    (folder / "local" / "adapter").mkdir(parents=True, exist_ok=True)
    (folder / "local" / "adapter" / "adapter_config.json").write_text("{}")
    uri = str(folder / "runs" / f"v{version}" / "checkpoints" / "000000000050-0")
    checkpoint.commit(folder / "local", uri, Ledger(plan, samples=50))
    return uri


def test_a_model_that_was_trained_on_the_days_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    yesterday, today = FIRST_DAY + 1, FIRST_DAY + 2
    models = [trained(tmp_path, version) for version in range(3)]
    told = plan(corpus, tmp_path, ["base", *models[:2]], today)
    assert any(f"samples of {day(today)} on of A" in line for line in told)
    assert "base: trained on no interactions of this corpus" in told
    for version, uri in enumerate(models[:2]):
        expected = f"{uri}: trained on interactions up to {day(FIRST_DAY + version)} "
        assert any(line.startswith(expected) for line in told)
    for model, from_day in (
        (models[1], yesterday),
        (models[2], today),
        ("popularity", today),
        ("sasrec", today),
    ):
        with pytest.raises(RunError, match=r"was trained on interactions .* no split by time"):
            plan(corpus, tmp_path, ["base", model], from_day)


def test_a_fine_tuned_model_is_refused_for_its_validation(tmp_path: Path) -> None:
    """Validation targets, of day 6 here, stopped it early and chose its learning rate."""
    rows = [(f"u{u}", f"A{(u + n) % 30:02d}", n * DAY) for u in range(30) for n in range(8)]
    data = settings(write_root(tmp_path / "root", {"A": rows}), domains=("A",), held_out=())
    corpus = build(data, 0, str(tmp_path / "corpus"), print)
    uri = trained(tmp_path, 0)
    assert f"{uri}: trained on interactions up to {day(5)} 00:00 UTC" in plan(
        corpus, tmp_path, [uri], 6
    )
    Path(uri, HISTORY_FILE).write_text("[]")  # a trial's, which was scored after each epoch
    for model in (uri, "sasrec"):
        with pytest.raises(RunError, match=rf"was trained on interactions up to {day(6)} .* no sp"):
            plan(corpus, tmp_path, [model], 6)
    assert f"{uri}: trained on interactions up to {day(6)} 00:00 UTC" in plan(
        corpus, tmp_path, [uri], 7
    )


def test_a_model_of_which_nothing_is_known_is_named(corpus: Corpus) -> None:
    line = check_trained_before("given", None, corpus, day(FIRST_DAY))
    assert line == (
        "given: what of this corpus it was trained on is not known, and may be of 1970-01-11 or "
        "later"
    )
