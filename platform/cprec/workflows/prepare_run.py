"""Prepares a pre-training run: its recipe, its corpus, its plan, and what the workers are given."""

from collections import Counter
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
from cprec.model.backbone import load_tokenizer
from cprec.model.base_files import identify
from cprec.model.base_uri import resolve_base
from cprec.model.context_length import require_context
from cprec.runs.base_lock import lock_base
from cprec.runs.checkpoint import CHECKPOINTS, CheckpointName, list_checkpoints
from cprec.runs.control.fence import UNFENCED, RunWriter
from cprec.runs.json_lines import open_events, read_events
from cprec.runs.recipe_lock import check_unchanged, write_recipe
from cprec.runs.records import CorpusVersionAdopted, RunStarted
from cprec.runs.run_plan import RunPlan
from cprec.runs.run_planning import require_matching_adapter, resolve_run_plan
from cprec.runs.token_form import require_same_tokens
from cprec.schedule.plan import Plan
from cprec.schedule.plan_notes import annealing_warning
from cprec.stream.row_encoder import find_fallback_reason
from cprec.tracking.registry import Registry
from cprec.train.distributed import driver
from cprec.workflows.build_corpus import build_corpus


def resolve_parent_uri(recipe: Recipe) -> Recipe:
    """Returns the recipe with an absolute `continue_from`.

    Workers on other nodes and the lineage need the absolute one.
    """
    parent = recipe.continue_from
    if parent is None:
        return recipe
    return recipe.model_copy(update={"continue_from": absolute_uri(parent)})


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
    if _is_built_first(recipe):
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
    if not _is_built_first(recipe):
        yield Corpus.open(recipe.corpus, recipe.corpus_version)
        return
    say(f"no corpus at {recipe.corpus} yet: it would be built first, of simulated shoppers")
    with build.preview_corpus(recipe.data, recipe.simulate, recipe.seed, recipe.corpus) as corpus:
        yield Corpus.open(corpus.uri, recipe.corpus_version)


def _is_built_first(recipe: Recipe) -> bool:
    """Returns whether a run builds its corpus: one of simulated shoppers that is missing."""
    samples = join(absolute_uri(recipe.corpus), SAMPLES)
    return recipe.data.format == "simulated" and not exists(samples)


def require_unregistered(registry: Registry, run_uri: str) -> None:
    """Checks that no version is registered of a run that has nothing left to go on from.

    A checkpoint is registered by its URI, so a run under the same name would be taken for the old
    one.

    Raises:
        RunError: There is such a version.
    """
    if list_checkpoints(run_uri):
        return
    try:
        versions = registry.versions()
    except Exception:  # whatever MLflow raises while it is away: training does not depend on it
        return
    for version in versions:
        if version.checkpoint.startswith(join(run_uri, CHECKPOINTS, "")):
            raise RunError(
                f"{join(run_uri, CHECKPOINTS)} holds no checkpoint, but {registry.model} version "
                f"{version.number} is one of this run: a run never starts over by itself; restore "
                "its checkpoints, or use another --run"
            )


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
        require_matching_adapter(recipe, base, recipe.continue_from)
    identity = identify(base, recipe.model.revision)
    tokenizer = load_tokenizer(base, identity.revision)
    token_form = _token_form_before(recipe, run_plan, is_new)
    require_same_tokens(recipe.run, token_form, corpus.read_titles(), tokenizer)
    require_context(base, identity.revision, recipe.model.max_tokens)
    # Refuses a base without a usable tokenizer before any worker starts.
    fallback_reason = find_fallback_reason(corpus, base, identity.revision)
    check_tokens_can_be_shared(recipe, fallback_reason, say)
    lock_base(identity, run_uri, recipe.continue_from, say, writer)
    write_recipe(recipe, run_uri, writer)
    run_plan.write(run_uri, writer)
    _record_start(recipe, run_uri, run_plan, writer)
    say(describe_plan(recipe, run_plan.plan))
    return driver.TrainingJob(recipe, run_uri, base, corpus, text, identity.revision), run_plan


def _token_form_before(recipe: Recipe, run_plan: RunPlan, is_new: bool) -> int:
    """Returns the rules of tokens under which the weights that a run starts with were trained."""
    if is_new and recipe.continue_from is not None:
        trunk = RunPlan.read(recipe.continue_from.rsplit("/", 2)[0])  # <run>/checkpoints/<name>
        return run_plan.token_form if trunk is None else trunk.token_form
    return run_plan.token_form


def check_tokens_can_be_shared(recipe: Recipe, fallback_reason: str | None, say: Say) -> None:
    """Checks that samples can share tokens with the tokenizer of the base, if they are to.

    Args:
        recipe: The recipe of the run.
        fallback_reason: Why prompts have to be tokenised one by one; None if they need not.
        say: Takes a line if they have to.

    Raises:
        RecipeError: Samples are to share tokens, and the tokenizer does not allow it.
    """
    if fallback_reason and recipe.train.inexact_keys:
        raise RecipeError(
            f"{recipe.train.inexact_keys}: samples share tokens only where prompts can be cut at "
            f"titles, but {fallback_reason}"
        )
    if fallback_reason:
        say(f"prompts are tokenised one by one, which is slower: {fallback_reason}")


def describe_plan(recipe: Recipe, plan: Plan) -> str:
    """Describes a plan for people, with a warning where its annealing is short."""
    batch, schedule = recipe.train.global_batch, recipe.schedule
    warning = annealing_warning(plan, schedule.min_annealing_share, batch)
    description = plan.describe(batch, schedule.replay_share)
    return f"{description}\n{warning}" if warning else description


def _record_start(recipe: Recipe, run_uri: str, run_plan: RunPlan, writer: RunWriter) -> None:
    """Writes the first events of a run, unless they are there.

    A start that died just after it had written the plan left none of them, or not all.
    """
    if any(isinstance(event, CorpusVersionAdopted) for event in read_events(run_uri)):
        return
    plan = run_plan.plan
    samples_by_source: Counter[str] = Counter()
    for (source, _), samples in plan.count_by_stream(0, plan.total_samples).items():
        samples_by_source[source] += samples
    events = open_events(run_uri, writer)
    events.retain(lambda event: not isinstance(event, RunStarted))
    events.append(
        RunStarted(
            samples=0,
            run=recipe.run,
            parent=run_plan.parent,
            warmup_end=plan.wsa.warmup_end,
            stable_end=plan.wsa.stable_end,
            annealing_end=plan.wsa.annealing_end,
        )
    )
    events.append(
        CorpusVersionAdopted(
            samples=0,
            version=run_plan.version,
            sources=samples_by_source,
            stable_end=plan.wsa.stable_end,
            annealing_end=plan.wsa.annealing_end,
        )
    )
    events.flush()
