"""Compares models on the samples of one domain, all with the same candidates.

Below `<storage>/<run>/evaluation/<domain>/`:

    <model>/predictions.parquet    what the model answered
    <model>/metrics.json           written after the predictions: without it, they do not count
    comparisons/<name>/<time>.json every comparison (cprec.runs.comparisons)

Predictions from equal inputs are not made again. Other modes than `score` have `-<mode>` in the
name of the folder, and rankings of the whole catalogue `-catalogue`: they are a form of evaluation
of their own, and nothing compares two forms. So do samples of some days (`evaluate.from_day`).
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cluster import storage
from cluster.console import Say
from cluster.errors import RunError
from cluster.progress import track
from cluster.ray_session import ray_session
from corpus.store.tables import Corpus
from cprec.baselines.training import ItemText
from cprec.config.recipe import Recipe
from cprec.downstream import forgetting, stored_baselines
from cprec.downstream.domain import Domain
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.downstream.scoring import generate_on_ray, score_model
from cprec.encode.prompt import UNRECORDED, PromptTemplate
from cprec.evaluation import catalogue_predictions, predictions
from cprec.evaluation.comparison import (
    Comparison,
    ComparisonRow,
    add_holm_correction,
    add_significance,
    tested_cutoff,
)
from cprec.evaluation.metrics import Metrics, VersionMetrics, average_metrics, hits
from cprec.model.base_uri import is_unbuilt, resolve_base
from cprec.model.context_length import require_context
from cprec.runs.comparisons import comparison_name, read_comparisons, write_comparison
from cprec.runs.record_files import read_json_object
from cprec.runs.records import EVALUATION_FOLDER
from cprec.runs.run_records import recipe_run_uri
from cprec.runs.token_form import TOKEN_FORM
from cprec.stream.row_encoder import RowEncoder
from cprec.tracking.model_card import publish_card
from cprec.tracking.registry import Registry
from cprec.tracking.report.renewal import renew_report
from cprec.workflows.evaluation.baselines import train_baselines
from cprec.workflows.evaluation.item_text import text_identity
from cprec.workflows.evaluation.plan import EvaluationPlan, plan_evaluation
from cprec.workflows.evaluation.prompted import prompted_inputs

PREDICTIONS = "predictions.parquet"
METRICS = "metrics.json"

_Encoding = tuple[str, str | None, PromptTemplate]
"""Base, revision and template."""


@dataclass(frozen=True)
class _Evaluated:
    """One model, or one seed of it, with its predictions and the content of its metrics.json."""

    model: EvaluatedModel
    predictions: pa.Table
    metrics: Metrics


def compare_models(
    recipe: Recipe, registry: Registry, names: Sequence[str], say: Say
) -> Comparison:
    """Scores models, stores what they answered, and compares each with the first.

    Arguments and errors are those of `plan_evaluation`; after an error nothing has been scored.
    """
    return run_evaluation(plan_evaluation(recipe, registry, names, say), registry, say)


def run_evaluation(plan: EvaluationPlan, registry: Registry, say: Say) -> Comparison:
    """Scores the models of a plan, stores what they answered, and compares each with the first."""
    recipe, domain = plan.recipe, plan.domain
    if any(is_unbuilt(recipe, model.base) for model in (*plan.models, *plan.language_models)):
        resolve_base(recipe, plan.corpus, say)
    for model in plan.language_models:
        require_context(model.base, model.revision, recipe.model.max_tokens)
    run_uri = recipe_run_uri(recipe)
    folder = storage.join(run_uri, EVALUATION_FOLDER, domain)
    perplexities = forgetting.measure_perplexities(recipe, folder, plan.models, say)
    tables = _load_or_predict(plan, folder, say)
    evaluated = [
        _store_metrics(plan, registry, folder, model, table)
        for model, table in zip(plan.models, tables, strict=True)
    ]
    form = recipe.evaluate.form
    rows = _compare_with_first(evaluated, perplexities, form)
    days = recipe.evaluate.days
    comparison = Comparison(
        comparison_name([row.name for row in rows], form, days),
        time.time(),
        domain,
        recipe.evaluate.split,
        form,
        plan.chance,
        f"HR@{tested_cutoff(form)}",
        rows,
        days,
    )
    comparison = add_holm_correction(comparison, read_comparisons(run_uri))
    write_comparison(run_uri, domain, asdict(comparison))
    renew_report(recipe, registry)
    return comparison


def predictions_uri(plan: EvaluationPlan, model: EvaluatedModel) -> str:
    """Returns where the predictions of a model of a plan are stored."""
    folder = storage.join(recipe_run_uri(plan.recipe), EVALUATION_FOLDER, plan.domain)
    return storage.join(_model_folder(plan.recipe, folder, model), PREDICTIONS)


def _load_or_predict(plan: EvaluationPlan, folder: str, say: Say) -> list[pa.Table]:
    """Returns each model's predictions: stored ones of equal inputs, else new ones, stored too."""
    recipe, samples = plan.recipe, plan.samples
    tables = {
        model.label: _read_predictions(
            _model_folder(recipe, folder, model), _prediction_inputs(plan, model), samples
        )
        for model in plan.models
    }
    missing = [model for model in plan.models if tables[model.label] is None]
    if missing:
        workers = min(recipe.workers, len(samples))
        num_cpus = recipe.cluster.num_cpus or workers * recipe.train.cpus_per_worker
        with ray_session(recipe.cluster.address, num_cpus):
            with track("tokenising titles", say):
                encoders = _row_encoders(recipe, plan.corpus, missing)
            texts = train_baselines(recipe, plan.corpus, plan.domain, missing, workers, say)
            for model in missing:
                say(f"scoring {model.label}: {len(samples):,} samples, {workers} worker(s)")
                place = _model_folder(recipe, folder, model)
                # Metrics must never stand beside predictions that they are not from.
                storage.remove(storage.join(place, METRICS))
                encoder = encoders.get(_encoding(model))
                table = _predict(plan, model, workers, encoder, texts.get(model.name), say)
                storage.write_bytes(storage.join(place, PREDICTIONS), predictions.to_bytes(table))
                tables[model.label] = table
    return [tables[model.label] for model in plan.models]


def _predict(
    plan: EvaluationPlan,
    model: EvaluatedModel,
    workers: int,
    encoder: RowEncoder | None,
    text: ItemText | None,
    say: Say,
) -> pa.Table:
    """Returns what a model answers to the samples, by scores or by text."""
    if plan.ranking:
        return plan.ranking.predict(model, workers, encoder, text, say)
    arguments = (plan.recipe, model, plan.corpus, plan.domain, plan.samples, workers, encoder, say)
    if _evaluation_form(plan.recipe, model) == "score":
        domain = Domain.from_corpus(plan.corpus, plan.domain, plan.recipe.evaluate.split)
        scores = score_model(*arguments, text)
        return predictions.from_scores(plan.samples, scores, domain.titles)
    return predictions.from_answers(plan.samples, generate_on_ray(*arguments))


def _read_predictions(folder: str, inputs: Mapping[str, Any], samples: pa.Table) -> pa.Table | None:
    """Returns the stored predictions; None where there are none of these inputs and samples."""
    metrics = storage.join(folder, METRICS)
    if not storage.exists(metrics):
        return None
    try:
        before = dict(read_json_object(metrics)["inputs"])
        # Earlier releases wrote none.
        before.setdefault("corpus_fingerprint", inputs["corpus_fingerprint"])
        if before != inputs:
            return None
        stored = predictions.from_bytes(storage.read_bytes(storage.join(folder, PREDICTIONS)))
        # Earlier releases scored several samples of a user after an append.
        return stored if stored["sample_id"].equals(samples["sample_id"]) else None
    except (RunError, KeyError, TypeError, ValueError):  # damaged: computed again
        return None


def _prediction_inputs(plan: EvaluationPlan, model: EvaluatedModel) -> dict[str, Any]:
    """Returns everything that predictions depend on: equal inputs, equal predictions."""
    recipe, corpus, domain = plan.recipe, plan.corpus, plan.domain
    return {
        "base": model.base,
        "base_revision": model.revision,
        "checkpoint": model.checkpoint,
        "baseline": stored_baselines.baseline_uri(
            recipe, corpus, domain, model.name, model.seed, text_identity(recipe, model)
        )
        if model.is_baseline
        else None,
        "precision": recipe.model.precision,
        "max_tokens": recipe.model.max_tokens,
        "corpus": corpus.uri,
        "corpus_version": corpus.version,
        "corpus_fingerprint": corpus.fingerprint,
        "split": recipe.evaluate.split,
        "max_users": recipe.evaluate.max_users,
        "mode": _evaluation_form(recipe, model),
        **({} if model.is_baseline else _prompt_inputs(model)),
        **prompted_inputs(model),
        **({"days": recipe.evaluate.days} if recipe.evaluate.days else {}),
        **(plan.ranking.inputs(model) if plan.ranking else {}),
    }


def _prompt_inputs(model: EvaluatedModel) -> dict[str, Any]:
    """Returns what a language model's predictions depend on as prompts are made."""
    # Without its name, predictions of earlier releases in their only template stay valid.
    template = {} if model.template == UNRECORDED else {"prompt_template": model.template.name}
    return {"token_form": TOKEN_FORM, **template}


def _row_encoders(
    recipe: Recipe, corpus: Corpus, models: Sequence[EvaluatedModel]
) -> dict[_Encoding, RowEncoder]:
    """Returns the row encoders of the language models.

    Models on one base share one, so that it is put into the object store once. Baselines need none.
    """
    return {
        (base, revision, template): RowEncoder.from_corpus(
            corpus, base, revision, recipe.model.max_tokens, template
        )
        for base, revision, template in dict.fromkeys(
            _encoding(model) for model in models if not model.is_baseline
        )
    }


def _encoding(model: EvaluatedModel) -> _Encoding:
    """Returns what the tokens of a language model's prompts depend on."""
    return model.base, model.revision, model.template


def _evaluation_form(recipe: Recipe, model: EvaluatedModel) -> str:
    """Returns the form in which a model is evaluated: a baseline never generates answers."""
    if model.writes_rankings:
        return "generate"
    form = recipe.evaluate.form
    return "score" if model.is_baseline and form != "catalogue" else form


def _model_folder(recipe: Recipe, folder: str, model: EvaluatedModel) -> str:
    """Returns the folder of a model's predictions and metrics, one for each form and days."""
    form = _evaluation_form(recipe, model)
    parts = ["" if form == "score" else form, recipe.evaluate.days.replace(" ", "-")]
    return storage.join(folder, "-".join(filter(None, [model.label, *parts])))


def _store_metrics(
    plan: EvaluationPlan, registry: Registry, folder: str, model: EvaluatedModel, table: pa.Table
) -> _Evaluated:
    """Computes a model's metrics, writes metrics.json and, for a version, notes them on it."""
    recipe, domain = plan.recipe, plan.domain
    form = _evaluation_form(recipe, model)
    metrics = (
        catalogue_predictions.to_metrics(table, model.label, domain)
        if plan.ranking
        else predictions.to_metrics(table, model.label, domain, form)
    )
    with_inputs: Metrics = {**metrics, "inputs": _prediction_inputs(plan, model)}
    storage.write_text(
        storage.join(_model_folder(recipe, folder, model), METRICS),
        json.dumps(with_inputs, indent=2),
    )
    # A version has the metrics of one form, so that versions can be compared by them.
    is_common = recipe.evaluate.form == "score" and not recipe.evaluate.days
    if model.registered_model and model.version and is_common:
        versions = registry.with_model(model.registered_model)
        described: VersionMetrics = {
            **metrics,
            "split": recipe.evaluate.split,
            "corpus_version": plan.corpus.version,
            "chance": plan.chance,
        }
        versions.log_evaluation(model.version, domain, described)
        publish_card(versions, model.version)
    return _Evaluated(model, table, metrics)


def _compare_with_first(
    evaluated: Sequence[_Evaluated], perplexities: Mapping[str, float], form: str
) -> list[ComparisonRow]:
    """Returns one row per name, each but the first tested against the first.

    Args:
        evaluated: Models in the order in which they were asked for, one for each seed.
        perplexities: Perplexity of the text by label, where it was measured.
        form: Form of the evaluation.
    """
    seeds_by_name: dict[str, list[_Evaluated]] = {}
    for result in evaluated:
        seeds_by_name.setdefault(result.model.name, []).append(result)
    to_ranks = (catalogue_predictions if form == "catalogue" else predictions).to_ranks
    hits_by_name = {
        name: np.stack([hits(to_ranks(seed.predictions), tested_cutoff(form)) for seed in seeds])
        for name, seeds in seeds_by_name.items()
    }
    rows = [
        ComparisonRow(
            name,
            seeds[0].model.label if len(seeds) == 1 else f"{len(seeds)} seeds",
            average_metrics([seed.metrics for seed in seeds]),
            None,
            perplexity=_mean_perplexity(perplexities, [seed.model for seed in seeds]),
        )
        for name, seeds in seeds_by_name.items()
    ]
    reference, *others = rows
    return [
        reference,
        *(
            add_significance(row, hits_by_name[reference.name], hits_by_name[row.name])
            for row in others
        ),
    ]


def _mean_perplexity(
    perplexities: Mapping[str, float], seeds: Sequence[EvaluatedModel]
) -> float | None:
    """Returns the mean perplexity of a model's seeds; None where it was not measured."""
    values = [perplexities[model.label] for model in seeds if model.label in perplexities]
    return float(np.mean(values)) if values else None
