"""Ranks items for many users, once: equal inputs are not ranked again, a killed job goes on.

cprec.ranking.batch says what is written.
"""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any, cast

import pyarrow as pa

from cluster import storage
from cluster.console import Say
from cluster.errors import PlatformFault, RecipeError
from cluster.ray_session import ray_session
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.downstream.known_items import is_hybrid
from cprec.downstream.stored_baselines import baseline_uri
from cprec.model.base_uri import is_unbuilt, resolve_base
from cprec.model.context_length import require_context
from cprec.ranking import batch
from cprec.ranking.batch_input import BatchInput, RowRules, from_corpus, read_files
from cprec.ranking.batch_input import uses_titles as file_uses_titles
from cprec.ranking.batch_summary import SUMMARY, BatchSummary, write_quarantine
from cprec.ranking.histories import read_histories
from cprec.ranking.items import ItemLookup, open_items, require_text_only
from cprec.retrieval.candidates import in_item_order
from cprec.retrieval.catalogue import Catalogue
from cprec.runs.record_files import read_json_object
from cprec.runs.run_records import recipe_run_uri
from cprec.runs.token_form import TOKEN_FORM
from cprec.stream.row_encoder import RowEncoder
from cprec.tracking.registry import Registry
from cprec.workflows.evaluation.catalogue import open_catalogue
from cprec.workflows.evaluation.embedding import embed_on_ray
from cprec.workflows.evaluation.models import describe_model

_ITEMS = pa.list_(pa.int64())
RECOMMENDATIONS_FOLDER = "recommendations"
"""Folder of a run that holds batches."""
BATCH_FORM = 1
"""Number of the rules by which a batch is made; blocks of other rules are not used."""
LOG_INTERVAL_S = 10.0
"""Seconds between two lines of progress, at least."""


@dataclass(frozen=True)
class BatchPlan:
    """A batch, checked before anything is computed.

    Attributes:
        recipe: The recipe.
        model: The model that ranks.
        corpus: The corpus; None where the input has titles.
        items: Items of the domain; None where the input has titles.
        catalogue: What finds the candidates; None where they are given.
        input: The rows.
        uri: Folder of the batch.
        identity: Everything that the rankings depend on.
    """

    recipe: Recipe
    model: EvaluatedModel
    corpus: Corpus | None
    items: ItemLookup | None
    catalogue: Catalogue | None
    input: BatchInput
    uri: str
    identity: dict[str, Any]

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return -(-len(self.input.rows) // self.recipe.recommend.block_users)

    @property
    def is_done(self) -> bool:
        """Whether a batch of equal inputs is there, whole."""
        return storage.exists(storage.join(self.uri, SUMMARY))


def plan_batch(recipe: Recipe, registry: Registry, model: EvaluatedModel, say: Say) -> BatchPlan:
    """Reads and checks what is to be ranked, and says what it is. Writes nothing.

    Args:
        recipe: The section `recommend`, and the corpus.
        registry: Where the model that retrieves is looked up.
        model: The model that ranks.
        say: Takes lines of progress.

    Raises:
        UserError: The model, the histories and the candidates do not fit together.
    """
    settings = recipe.recommend
    source = None if settings.histories is None else storage.absolute_uri(settings.histories)
    are_titles = source is not None and file_uses_titles(source)
    _check_candidates(recipe, source, are_titles)
    if are_titles:
        require_text_only(model)
        corpus, items, catalogue = None, None, None
    else:
        corpus, items = open_items(recipe, model)
        catalogue = open_catalogue(recipe, registry, model, corpus, items)
    rules = RowRules(
        items, settings.candidates == "given", recipe.data.max_history, settings.exclude_history
    )
    if source is not None:
        rows = read_files(source, rules, are_titles)
    elif corpus is not None and items is not None:
        histories = read_histories(corpus, items.domain, settings.as_of)
        rows = from_corpus(histories, rules, corpus.uri)
    identity = _identify(recipe, model, corpus, items, catalogue, rows)
    plan = BatchPlan(
        recipe,
        model,
        corpus,
        items,
        catalogue,
        rows,
        _locate(recipe, model, items, identity),
        identity,
    )
    say(f"{len(rows.rows):,} users of {source or recipe.corpus}: {_describe(plan)}")
    for reason, count in rows.counts.items():
        first = next(row for row in rows.rejected if row.reason == reason)
        say(
            f"  not ranked: {reason} {count:,}, first row {first.row:,} of {first.file}: "
            f"{first.detail}"
        )
    return plan


def run_batch(plan: BatchPlan, say: Say) -> BatchSummary:
    """Ranks what is missing of a batch, and returns its summary.

    Args:
        plan: The batch.
        say: Takes lines of progress.

    Raises:
        PlatformFault: A user is missing at the end, or stands there twice.
    """
    summary_uri = storage.join(plan.uri, SUMMARY)
    if plan.is_done:
        say(f"{plan.uri}: ranked already, from equal inputs")
        return cast(BatchSummary, read_json_object(summary_uri))
    recipe = plan.recipe
    models = [plan.model, *([plan.catalogue.model] if plan.catalogue else [])]
    if plan.corpus and any(is_unbuilt(recipe, model.base) for model in models):
        resolve_base(recipe, plan.corpus, say)
    require_context(plan.model.base, plan.model.revision, recipe.model.max_tokens)
    started = time.monotonic()
    missing = batch.list_missing(plan.uri, plan.num_blocks)
    if len(missing) < plan.num_blocks:
        say(f"{plan.num_blocks - len(missing):,} of {plan.num_blocks:,} blocks are there")
    computed = 0
    if missing:
        num_cpus = recipe.cluster.num_cpus or recipe.workers * recipe.train.cpus_per_worker
        with ray_session(recipe.cluster.address, num_cpus):
            computed = _rank_missing(plan, missing, say)
    return _finish(plan, computed, time.monotonic() - started)


def _rank_missing(plan: BatchPlan, missing: list[int], say: Say) -> int:
    """Ranks the blocks that are missing, inside a Ray session; returns their users."""
    recipe = plan.recipe
    rows = plan.input.rows
    if plan.catalogue is not None:
        rows = _retrieve(plan, plan.catalogue, missing, say)
    encoder = None
    if plan.corpus is not None and not is_hybrid(plan.model.checkpoint):
        encoder = RowEncoder.from_corpus(
            plan.corpus,
            plan.model.base,
            plan.model.revision,
            recipe.model.max_tokens,
            plan.model.template,
        )
    ranking = batch.BlockRanking(
        recipe,
        plan.model,
        plan.items,
        encoder,
        plan.uri,
        recipe.recommend.histories or recipe.corpus,
    )
    size = recipe.recommend.block_users
    total = sum(min(size, len(rows) - number * size) for number in missing)
    started = shown = time.monotonic()
    done = 0
    for users in batch.rank_blocks(ranking, rows, missing, recipe.workers):
        done += users
        now = time.monotonic()
        if now - shown >= LOG_INTERVAL_S or done == total:
            shown = now
            say(format_batch_progress(done, total, now - started))
    return done


def format_batch_progress(done: int, total: int, seconds: float) -> str:
    """Returns the line of progress: users that are ranked, users per second, time left."""
    per_s = done / max(seconds, 1e-9)
    left = int((total - done) / per_s) if per_s else 0
    return (
        f"ranked {done:>9,}/{total:,} users  {per_s:,.2f} users/s  "
        f"{left // 60}:{left % 60:02d} left"
    )


def _retrieve(plan: BatchPlan, catalogue: Catalogue, missing: list[int], say: Say) -> pa.Table:
    """Returns the rows with candidates and cut histories; blocks that are there have none."""
    recipe, settings = plan.recipe, plan.recipe.recommend
    histories = plan.input.rows["history"].to_pylist()
    source = catalogue.build_source(embed_on_ray(recipe, catalogue.model, recipe.workers), say)
    candidates: list[list[int]] = [[]] * len(histories)
    started, found = time.monotonic(), 0
    for number in missing:
        part = slice(number * settings.block_users, (number + 1) * settings.block_users)
        chosen = source.find(histories[part], settings.retrieve_k)
        candidates[part] = in_item_order(chosen, histories[part], settings.exclude_history)
        found += len(chosen)
    seconds = time.monotonic() - started
    say(
        f"retrieved {settings.retrieve_k} of {len(catalogue.items):,} items: {seconds:.1f} s, "
        f"{found / max(seconds, 1e-9):,.0f} users/s"
    )
    return pa.table(
        {
            **{name: plan.input.rows[name] for name in plan.input.rows.column_names},
            "history": pa.array([h[-recipe.data.max_history :] for h in histories], _ITEMS),
            "candidates": pa.array(candidates, _ITEMS),
        }
    )


def _finish(plan: BatchPlan, computed: int, seconds: float) -> BatchSummary:
    """Counts what is there, writes the quarantine and the summary, and returns the summary."""
    ranked, unfit = batch.read_counts(plan.uri, plan.num_blocks)
    if ranked + len(unfit) != len(plan.input.rows):
        raise PlatformFault(
            f"{plan.uri}: {ranked:,} users are ranked and {len(unfit):,} are not, of "
            f"{len(plan.input.rows):,}; remove the folder and start again"
        )
    rejected = [*plan.input.rejected, *unfit]
    counts: dict[str, int] = {}
    for row in rejected:
        counts[row.reason] = counts.get(row.reason, 0) + 1
    if rejected:
        write_quarantine(plan.uri, rejected)
    summary: BatchSummary = {
        "rankings": storage.join(plan.uri, batch.RANKINGS),
        "model": asdict(plan.model),
        "counts": {
            "rows": len(plan.input.rows) + len(plan.input.rejected),
            "ranked": ranked,
            "not_ranked": dict(sorted(counts.items())),
        },
        "inputs": plan.identity,
        "last_start": {
            "users": computed,
            "seconds": round(seconds, 1),
            "users_per_s": round(computed / seconds, 2) if seconds else None,
        },
    }
    storage.write_text(storage.join(plan.uri, SUMMARY), json.dumps(summary, indent=2))
    return summary


def _check_candidates(recipe: Recipe, source: str | None, are_titles: bool) -> None:
    """Raises RecipeError where candidates cannot come from where the recipe says."""
    settings = recipe.recommend
    if settings.candidates == "given" and source is None and settings.as_of == "now":
        raise RecipeError(
            "recommend.candidates: given, but users of the corpus have none as of now; set "
            "recommend.candidates catalogue, or recommend.as_of test"
        )
    if settings.candidates == "catalogue" and are_titles:
        raise RecipeError(
            "recommend.candidates: catalogue needs item ids; recommend.histories has titles: set "
            "recommend.candidates given, and give candidates_titles"
        )
    if source is not None and settings.as_of != "now":
        raise RecipeError(
            f"recommend.as_of: {settings.as_of} is about histories of the corpus, and "
            "recommend.histories gives others; leave one of them out"
        )


def _identify(
    recipe: Recipe,
    model: EvaluatedModel,
    corpus: Corpus | None,
    items: ItemLookup | None,
    catalogue: Catalogue | None,
    rows: BatchInput,
) -> dict[str, Any]:
    """Returns everything that rankings depend on: equal inputs, equal rankings."""
    settings = recipe.recommend
    return {
        "form": BATCH_FORM,
        "token_form": TOKEN_FORM,
        "base": model.base,
        "base_revision": model.revision,
        "checkpoint": model.checkpoint,
        "prompt_template": model.template.name,
        "precision": recipe.model.precision,
        "max_tokens": recipe.model.max_tokens,
        "corpus": corpus and corpus.uri,
        "corpus_version": corpus and corpus.version,
        "corpus_fingerprint": corpus and corpus.fingerprint,
        "domain": items and items.domain.name,
        "histories": settings.histories or settings.as_of,
        "rows": rows.digest,
        "k": settings.k,
        "block_users": settings.block_users,
        "retrieval": None if catalogue is None else _identify_retrieval(recipe, catalogue),
    }


def _identify_retrieval(recipe: Recipe, catalogue: Catalogue) -> dict[str, Any]:
    """Returns what candidates out of the catalogue depend on."""
    trained = catalogue.sasrec
    return {
        "k": recipe.recommend.retrieve_k,
        "max_history": recipe.data.max_history,  # of given candidates, it is in the rows
        **catalogue.recipe.retrieval.model_dump(mode="json", exclude={"model"}),
        "max_samples": recipe.finetune.max_samples,
        "vectors": dict(catalogue.vector_identity),
        "sasrec": None
        if trained is None
        else baseline_uri(recipe, trained, catalogue.domain.name, "sasrec", recipe.seed),
    }


def _locate(
    recipe: Recipe, model: EvaluatedModel, items: ItemLookup | None, identity: dict[str, Any]
) -> str:
    """Returns the folder of a batch."""
    digest = storage.sha256(json.dumps(identity, sort_keys=True).encode())[:16]
    if recipe.recommend.out is not None:
        return storage.join(storage.absolute_uri(recipe.recommend.out), digest)
    domain = "titles" if items is None else items.domain.name
    return storage.join(recipe_run_uri(recipe), RECOMMENDATIONS_FOLDER, domain, model.label, digest)


def _describe(plan: BatchPlan) -> str:
    """Returns what is ranked, with what, for people."""
    settings, model = plan.recipe.recommend, plan.model
    candidates = "those that are given"
    if plan.catalogue is not None:
        candidates = f"{settings.retrieve_k} of {len(plan.catalogue.items):,} items, retrieved"
    return f"top {settings.k} of {candidates}, by {model.label}: {describe_model(model)}"
