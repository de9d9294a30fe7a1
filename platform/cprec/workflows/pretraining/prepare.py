"""Prepares a pre-training run: its recipe, its corpus, its plan, and what the workers are given."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from cluster.console import Say
from cluster.errors import RecipeError, RunError
from cluster.storage import absolute_uri, exists, join
from corpus import build
from corpus.ingest.plain_text import read_plain_text
from corpus.sampling.replay_text import text_digest
from corpus.store.tables import SAMPLES, Corpus
from cprec.config.recipe import Recipe
from cprec.downstream.stored_model import Form, StoredModel
from cprec.model.adapter_config import require_matching_adapter
from cprec.model.backbone import load_tokenizer
from cprec.model.base_files import identify
from cprec.model.base_uri import resolve_base
from cprec.model.context_length import require_context
from cprec.runs.checkpoint import CHECKPOINTS, CheckpointName, list_checkpoints
from cprec.runs.control.fence import UNFENCED, RunWriter
from cprec.runs.locks.base import lock_base
from cprec.runs.locks.recipe import check_unchanged, write_recipe
from cprec.runs.run_plan import RunPlan
from cprec.runs.run_planning import describe_run, resolve_run_plan
from cprec.runs.token_form import require_same_tokens
from cprec.stream.row_encoder import find_fallback_reason, require_tokens_can_be_shared
from cprec.tracking.lineage import find_version_below
from cprec.tracking.registry import Registry
from cprec.tracking.version_names import is_mutable_name
from cprec.train.distributed import driver
from cprec.workflows.build_corpus import build_corpus
from cprec.workflows.evaluation.models import describe_other_template, find_model


def require_unregistered(registry: Registry, run_uri: str) -> None:
    """Checks that no version is of a run that has nothing left to go on from.

    Raises:
        RunError: There is such a version.
    """
    checkpoints = join(run_uri, CHECKPOINTS)
    if list_checkpoints(run_uri):
        return
    if (number := find_version_below(registry, checkpoints)) is not None:
        raise RunError(
            f"{checkpoints} holds no checkpoint, but {registry.model} version {number} is one of "
            "this run: a run never starts over by itself; restore its checkpoints, or use another "
            "--run"
        )


def resolve_start(recipe: Recipe) -> Recipe:
    """Returns the recipe with the URI that `continue_from` stands for; None for the base.

    Workers on other nodes and the lineage need an absolute one.

    Raises:
        RecipeError: The name may stand for something else when the run resumes, or for a model that
            is a base itself.
        RunError: There is no such model.
    """
    name = recipe.continue_from
    if name is None or name == "base":
        return recipe.model_copy(update={"continue_from": None})
    if is_mutable_name(name):
        raise RecipeError(
            f"continue_from {name}: it may stand for another version when the run resumes; give "
            "the number of the version, or a URI"
        )
    if "/" in name and not name.startswith("models:"):
        uri = absolute_uri(name)
    else:
        model = find_model(recipe, Registry.from_recipe(recipe), name, "continue_from")
        uri = str(model.checkpoint)
    if StoredModel.at(uri).form == Form.MERGED:
        raise RecipeError(
            f"continue_from {name}: a whole model, which is a base: give it as model.base"
        )
    return recipe.model_copy(update={"continue_from": uri})


def branch_recipe(recipe: Recipe, checkpoint_uri: str, run: str | None) -> Recipe:
    """Returns the recipe of a branch, which anneals a stable checkpoint of its trunk.

    Args:
        recipe: The recipe of the trunk.
        checkpoint_uri: The checkpoint, as `<storage>/<run>/checkpoints/<samples>-<attempt>`.
        run: Name of the branch; by default `<trunk>-anneal-<samples>`.

    Raises:
        RunError: The URI is not a checkpoint's, or the branch has the name of its trunk.
    """
    source = absolute_uri(checkpoint_uri)
    trunk = source.split("/")[-3]
    name = CheckpointName.parse(source.split("/")[-1])
    if name is None:
        raise RunError(
            f"--from {checkpoint_uri}: not a checkpoint; "
            "give <storage>/<run>/checkpoints/<samples>-<attempt>"
        )
    branch = run or f"{trunk}-anneal-{name.samples}"
    if branch == trunk:
        raise RunError(f"--run {branch}: that is the trunk; give the branch another name, or none")
    return recipe.model_copy(update={"run": branch, "continue_from": source, "branch": True})


def open_corpus(recipe: Recipe, say: Say) -> Corpus:
    """Opens the corpus of a recipe; a missing one of simulated shoppers is built first.

    Raises:
        CorpusError: There is no corpus.
    """
    if is_built_first(recipe):
        build_corpus(recipe, say)
    return Corpus.open(recipe.corpus, recipe.corpus_version)


@contextmanager
def preview_corpus(recipe: Recipe, say: Say) -> Iterator[Corpus]:
    """Yields the corpus that `open_corpus` would return, as long as a `with` block runs.

    Nothing that stays is written: a missing corpus of simulated shoppers is built in a temporary
    folder.

    Raises:
        CorpusError: There is no corpus.
    """
    if not is_built_first(recipe):
        yield Corpus.open(recipe.corpus, recipe.corpus_version)
        return
    say(f"no corpus at {recipe.corpus} yet: it would be built first, of simulated shoppers")
    with build.preview_corpus(recipe.data, recipe.simulate, recipe.seed, recipe.corpus) as corpus:
        yield Corpus.open(corpus.uri, recipe.corpus_version)


def is_built_first(recipe: Recipe) -> bool:
    """Returns whether a run builds its corpus: one of simulated shoppers that is missing."""
    return recipe.data.format == "simulated" and not has_corpus(recipe)


def has_corpus(recipe: Recipe) -> bool:
    """Returns whether the corpus of a recipe has been built."""
    return exists(join(absolute_uri(recipe.corpus), SAMPLES))


def prepare_run(
    recipe: Recipe,
    run_uri: str,
    corpus: Corpus,
    allow: Collection[str],
    say: Say,
    writer: RunWriter = UNFENCED,
) -> tuple[driver.TrainingJob, RunPlan]:
    """Checks all inputs of a run, then writes its recipe, its plan and its first events.

    Nothing is written into the run's folder before every check has passed. So a first start that
    is refused leaves no run behind.

    Args:
        recipe: The recipe of the run.
        run_uri: Folder of the run.
        corpus: The corpus that it trains on.
        allow: Keys that may differ from the run's last start.
        say: Takes lines of progress.
        writer: What the run's files are written through.

    Returns:
        What to train, and the plan of the run.
    """
    recipe.model.require_stage(recipe.train.zero_stage)
    previous_recipe = check_unchanged(recipe, run_uri, allow)
    text = None
    if recipe.evaluate.text is not None:
        text = read_plain_text(recipe.evaluate.text, "evaluate.text")
    appended_texts = {commit.metadata.get("text") for commit in corpus.commits}
    if text and recipe.schedule.replay_share and text_digest(text) in appended_texts:
        say(
            f"{recipe.evaluate.text} is also replayed: its perplexity shows what is learned of it, "
            "not what is forgotten"
        )
    run_plan, is_new = resolve_run_plan(recipe, run_uri, corpus, previous_recipe)
    base = resolve_base(recipe, corpus, say)
    if is_new and recipe.continue_from is not None:
        require_matching_adapter(recipe.model, base, recipe.continue_from)
    identity = identify(base, recipe.model.revision)
    tokenizer = load_tokenizer(base, identity.revision)
    require_same_tokens(recipe.run, run_plan.token_form, corpus.read_titles(), tokenizer)
    require_context(base, identity.revision, recipe.model.max_tokens)
    # The recipe may name an older version than the plan has rows of, or one that the run refuses.
    planned = Corpus.open(corpus.uri, run_plan.newest_planned)
    # Refuses a base without a usable tokenizer before any worker starts.
    fallback_reason = find_fallback_reason(planned, base, identity.revision, run_plan.template)
    if note := describe_other_template(run_plan.template, corpus, run_plan.parent or base):
        say(note)
    require_tokens_can_be_shared(recipe.train.inexact_keys, fallback_reason)
    lock_base(identity, run_uri, recipe.continue_from, say, writer)
    write_recipe(recipe, run_uri, writer)
    run_plan.write(run_uri, writer)
    run_plan.record_start(run_uri, recipe.run, writer)
    say(describe_run(recipe, corpus, run_plan.plan))
    job = driver.TrainingJob(
        recipe, run_uri, base, planned, run_plan.template, text, identity.revision
    )
    return job, run_plan
