"""Models against each other on one domain's samples, all with the same candidates: found by the registry, scored on Ray, kept in the run.

Written below `<storage>/<run>/evaluation/<domain>/`: `<model>/predictions.parquet`, `<model>/metrics.json` (last: what has none is not there), and
`comparison.json`. Predictions that were made from the same inputs are not made again.
"""

import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster import storage
from cluster.console import Say
from cluster.errors import RecipeError, RunError
from cluster.ray_session import ray_session
from corpus.store.tables import Corpus
from cprec.baselines.training import BASELINE_NAMES as BASELINES
from cprec.config.recipe import Recipe
from cprec.downstream import forgetting, stored_baselines
from cprec.downstream.scoring import EvaluatedModel, generate_texts, score_model
from cprec.evaluate import predictions
from cprec.evaluate.metrics import average_metrics, hits
from cprec.evaluate.significance import PairedTest, holm_correction, paired_t_test, permutation_test
from cprec.model.base_uri import resolve_base
from cprec.runs import checkpoint
from cprec.runs.records import EVENTS_FILE, run_folder
from cprec.stream.row_encoder import RowEncoder
from cprec.tracking import report
from cprec.tracking.registry import Registry

PREDICTIONS, METRICS, COMPARISON = "predictions.parquet", "metrics.json", "comparison.json"
SEARCH = "search.json"


@dataclass(frozen=True)
class ComparisonRow:
    """A model's metrics, and its HR@1 against the reference (None for the reference itself). name: as it was asked for; model: what it is.

    A model that was trained with several seeds has the mean of their metrics; `against` then compares the means over seeds, sample by sample, and
    `over_seeds` the seeds' HR@1 (paper Sec. 5.1.4). permutation_p: of `against`, by a permutation test. holm_p: of `against`, corrected for the
    domains that these models were compared on in this run. perplexity: of `evaluate.text`, the mean over seeds; None without one, and for baselines.
    """

    name: str
    model: str
    metrics: Mapping[str, Any]
    against: PairedTest | None
    permutation_p: float | None = None
    over_seeds: PairedTest | None = None
    holm_p: float | None = None
    perplexity: float | None = None


@dataclass(frozen=True)
class Comparison:
    """rows: one per model, the reference first."""

    domain: str
    split: str
    rows: Sequence[ComparisonRow]


def find_models(
    recipe: Recipe, registry: Registry, names: Sequence[str], corpus: Corpus, say: Say
) -> list[EvaluatedModel]:
    """The models behind names: base, a baseline, candidate, champion, previous, a version number, a search of this run, or a checkpoint's URI.

    A version brings its base with it, by its lineage; `base` and a bare checkpoint take the base of the versions beside them, else the recipe's.
    Raises RunError for a name that means nothing yet, or one that takes its base from versions of different bases; RecipeError without any.
    """
    if not names:
        raise RecipeError(
            "evaluate.models: empty; give base, sasrec, candidate, a version number or a checkpoint's URI, comma-separated"
        )
    versions = {
        name: version
        for name in dict.fromkeys(names)
        if (version := registry.find_version(name)) is not None
    }
    bases = {
        name: (v.tags["base"], v.tags.get("base_revision") or None)
        for name, v in versions.items()
        if "base" in v.tags
    }

    @cache
    def implied(name: str) -> tuple[str, str | None]:
        """The base of a model that brings none."""
        if len(set(bases.values())) > 1:
            shown = ", ".join(f"{version} on {base}" for version, (base, _) in bases.items())
            raise RunError(
                f"evaluate.models: {name} takes the base of the versions beside it, which stand on different ones ({shown}); name fewer"
            )
        return next(iter(bases.values()), None) or (
            resolve_base(recipe, corpus, say),
            recipe.model.revision,
        )

    found: list[EvaluatedModel] = []
    for name in dict.fromkeys(names):
        if name == "base":
            found.append(EvaluatedModel(name, name, *implied(name)))
        elif name in BASELINES:
            seeds = range(recipe.seed, recipe.seed + recipe.baseline.seeds)
            found += [
                EvaluatedModel(name, f"{name}-seed{seed}", "", None, seed=seed) for seed in seeds
            ]
        elif version := versions.get(name):
            base, revision = bases.get(name) or implied(name)
            found.append(
                EvaluatedModel(
                    name,
                    f"version-{version.number}",
                    base,
                    revision,
                    version.checkpoint,
                    version.number,
                )
            )
        elif tuned := _find_tuned_checkpoints(recipe, name):
            found += [
                EvaluatedModel(name, f"{name}-{place}", *implied(name), uri) for place, uri in tuned
            ]
        else:
            uri = storage.absolute_uri(name)
            run, attempt = (
                posixpath.basename(posixpath.dirname(posixpath.dirname(uri))),
                posixpath.basename(uri),
            )
            label = f"{run}-{attempt}"
            if any(other.label == label and other.checkpoint != uri for other in found):
                label += f"-{storage.sha256(uri.encode())[:6]}"
            found.append(EvaluatedModel(name, label, *implied(name), uri))
    return list({c.label: c for c in found}.values())


def _find_tuned_checkpoints(recipe: Recipe, name: str) -> list[tuple[str, str]]:
    """The seeds of a search's best rate as (label, checkpoint), if this run has a search of this name on the domain."""
    domain = recipe.evaluate.domain or next(iter(recipe.data.held_out), "")
    if "/" in name or not storage.exists(
        found := storage.join(
            run_folder(storage.absolute_uri(recipe.storage), recipe.run),
            "finetune",
            domain,
            name,
            SEARCH,
        )
    ):
        return []
    return [
        (f"seed{seed['seed']}", seed["checkpoint"])
        for seed in json.loads(storage.read_text(found))["winner"]["seeds"]
    ]


def load_samples(recipe: Recipe) -> tuple[Corpus, str, pa.Table]:
    """The corpus, the domain and its samples that models are scored on, in the order of their (unsigned) ids.

    Raises CorpusError when the domain has none in this split, RecipeError when no domain is named.
    """
    domain = recipe.evaluate.domain or next(iter(recipe.data.held_out), None)
    if domain is None:
        raise RecipeError(
            "evaluate.domain: none given, and data.held_out is empty; name a domain of the corpus"
        )
    corpus = Corpus.open(recipe.corpus, recipe.corpus_version)
    split = recipe.evaluate.split
    samples = corpus.read_samples(corpus.find_domain_source(domain, split), split)
    order = np.argsort(samples["sample_id"].to_numpy().view(np.uint64), kind="stable")[
        : recipe.evaluate.max_users
    ]
    return corpus, domain, samples.take(order)


def compare_models(
    recipe: Recipe, registry: Registry, names: Sequence[str], say: Say
) -> Comparison:
    """Score the models, write their artefacts, note their metrics on their versions, and compare each with the first. `say` gets lines of progress.

    Raises UserError for models or samples that are not there, before anything is scored.
    """
    corpus, domain, samples = load_samples(recipe)
    models = find_models(recipe, registry, names, corpus, say)
    for model in models:
        if model.checkpoint is not None:
            checkpoint.verify(model.checkpoint)
    run = run_folder(storage.absolute_uri(recipe.storage), recipe.run)
    folder = storage.join(run, "evaluation", domain)
    forgotten = forgetting.measure_perplexities(
        recipe, folder, models, say
    )  # first, because its text may not be there
    tables = _load_or_predict(recipe, folder, models, corpus, domain, samples, say)
    results: dict[str, list[tuple[EvaluatedModel, pa.Table, dict[str, Any]]]] = {}
    for model, table in zip(models, tables, strict=True):
        result = predictions.to_metrics(table, model.label, domain, _evaluation_mode(recipe, model))
        written = {**result, "inputs": _prediction_inputs(recipe, corpus, domain, model)}
        storage.write_text(
            storage.join(_model_folder(recipe, folder, model), METRICS),
            json.dumps(written, indent=2),
        )
        if model.version is not None and recipe.evaluate.mode == "score":
            registry.log_evaluation(model.version, domain, result)
        results.setdefault(model.name, []).append((model, table, result))
    reference, *others = ([table for _, table, _ in seeds] for seeds in results.values())
    rows = [
        ComparisonRow(
            name,
            _model_label(seeds),
            average_metrics([result for *_, result in seeds]),
            None,
            perplexity=_mean_perplexity(forgotten, [model for model, *_ in seeds]),
        )
        for name, seeds in results.items()
    ]
    rows[1:] = [
        _add_significance(row, reference, tables)
        for row, tables in zip(rows[1:], others, strict=True)
    ]
    comparison = Comparison(
        domain,
        recipe.evaluate.split,
        _add_holm_correction(run, domain, rows, _comparison_filename(recipe)),
    )
    storage.write_text(
        storage.join(folder, _comparison_filename(recipe)),
        json.dumps(asdict(comparison), indent=2, allow_nan=False),
    )
    if storage.exists(storage.join(run, EVENTS_FILE)):
        report.write(run)
    return comparison


def _model_label(seeds: Sequence[tuple[EvaluatedModel, pa.Table, dict[str, Any]]]) -> str:
    return seeds[0][0].label if len(seeds) == 1 else f"{len(seeds)} seeds"


def _mean_perplexity(
    perplexities: Mapping[str, float], seeds: Sequence[EvaluatedModel]
) -> float | None:
    """Mean perplexity of a model's seeds."""
    values = [perplexities[model.label] for model in seeds if model.label in perplexities]
    return float(np.mean(values)) if values else None


def _add_significance(
    row: ComparisonRow, reference: Sequence[pa.Table], tables: Sequence[pa.Table]
) -> ComparisonRow:
    """A row with its tests against the reference; each model comes as the predictions of its seeds."""
    before, after = (
        np.stack([_hits_at_1(table) for table in seeds]) for seeds in (reference, tables)
    )
    mean_before, mean_after = before.mean(axis=0), after.mean(axis=0)
    over_seeds = None
    if len(after) > 1 and len(before) in (1, len(after)):
        over_seeds = paired_t_test(
            np.broadcast_to(before.mean(axis=1), len(after)), after.mean(axis=1)
        )
    return replace(
        row,
        against=paired_t_test(mean_before, mean_after),
        permutation_p=permutation_test(mean_before, mean_after),
        over_seeds=over_seeds,
    )


def _evaluation_mode(recipe: Recipe, model: EvaluatedModel) -> str:
    """How a model is evaluated: a baseline can only score."""
    return "score" if model.is_baseline else recipe.evaluate.mode


def _model_folder(recipe: Recipe, folder: str, model: EvaluatedModel) -> str:
    """Where a model's artefacts lie, by mode."""
    mode = _evaluation_mode(recipe, model)
    return storage.join(folder, model.label if mode == "score" else f"{model.label}-{mode}")


def _comparison_filename(recipe: Recipe) -> str:
    return (
        COMPARISON if recipe.evaluate.mode == "score" else f"comparison-{recipe.evaluate.mode}.json"
    )


def _add_holm_correction(
    run: str, domain: str, rows: Sequence[ComparisonRow], filename: str
) -> list[ComparisonRow]:
    """The rows with Holm's correction over the run's domains on which the same two models were compared."""
    place = storage.join(run, "evaluation")
    others = [
        json.loads(storage.read_text(file))
        for d in storage.list_names(place)
        if d != domain and storage.exists(file := storage.join(place, d, filename))
    ]

    def same(row: ComparisonRow) -> list[float]:
        pairs = [(c["rows"][0]["name"], r["name"], r["against"]) for c in others for r in c["rows"]]
        return [
            against["p"]
            for reference, name, against in pairs
            if (reference, name) == (rows[0].name, row.name) and against
        ]

    return [
        replace(row, holm_p=holm_correction([row.against.p, *same(row)])[0]) if row.against else row
        for row in rows
    ]


def _prediction_inputs(
    recipe: Recipe, corpus: Corpus, domain: str, model: EvaluatedModel
) -> dict[str, Any]:
    """All that predictions depend on: equal inputs, equal predictions."""
    return {
        "base": model.base,
        "base_revision": model.revision,
        "checkpoint": model.checkpoint,
        "baseline": stored_baselines.baseline_uri(recipe, corpus, domain, model.name, model.seed)
        if model.is_baseline
        else None,
        "precision": recipe.model.precision,
        "max_tokens": recipe.model.max_tokens,
        "corpus": corpus.uri,
        "corpus_version": corpus.version,
        "split": recipe.evaluate.split,
        "max_users": recipe.evaluate.max_users,
        "mode": _evaluation_mode(recipe, model),
    }


def _load_or_predict(
    recipe: Recipe,
    folder: str,
    models: Sequence[EvaluatedModel],
    corpus: Corpus,
    domain: str,
    samples: pa.Table,
    say: Say,
) -> list[pa.Table]:
    """Each model's predictions: the kept ones where their inputs are the same, else newly made and written."""
    tables = {
        model.label: _read_predictions(
            _model_folder(recipe, folder, model), _prediction_inputs(recipe, corpus, domain, model)
        )
        for model in models
    }
    missing = [model for model in models if tables[model.label] is None]
    if missing:
        workers = min(recipe.workers, len(samples))
        with ray_session(
            recipe.cluster.address,
            recipe.cluster.num_cpus or workers * recipe.train.cpus_per_worker,
        ):
            texts_on = _row_encoders(recipe, corpus, missing)
            for model in missing:
                say(f"scoring {model.label}: {len(samples):,} samples, {workers} worker(s)")
                place, text = (
                    _model_folder(recipe, folder, model),
                    texts_on.get((model.base, model.revision)),
                )
                storage.remove(
                    storage.join(place, METRICS)
                )  # so that it never stands beside predictions that it is not of
                if _evaluation_mode(recipe, model) == "score":
                    table = predictions.from_scores(
                        samples, score_model(recipe, model, corpus, domain, samples, workers, text)
                    )
                else:
                    table = predictions.from_texts(
                        samples,
                        generate_texts(recipe, model, corpus, domain, samples, workers, text),
                        corpus.read_titles(),
                    )
                storage.write_bytes(storage.join(place, PREDICTIONS), predictions.to_bytes(table))
                tables[model.label] = table
    return [tables[model.label] for model in models]


def _read_predictions(folder: str, inputs: Mapping[str, Any]) -> pa.Table | None:
    """Predictions of these inputs, if there are any."""
    place = storage.join(folder, METRICS)
    if not storage.exists(place) or json.loads(storage.read_text(place)).get("inputs") != inputs:
        return None
    return predictions.from_bytes(storage.read_bytes(storage.join(folder, PREDICTIONS)))


def _hits_at_1(table: pa.Table) -> NDArray[np.float64]:
    return hits(predictions.to_ranks(table), 1)


def _row_encoders(
    recipe: Recipe, corpus: Corpus, models: Sequence[EvaluatedModel]
) -> dict[tuple[str, str | None], RowEncoder]:
    """What language models read with, by base and revision: models on one base share one, put into the object store once. Baselines do not read."""
    read = dict.fromkeys((model.base, model.revision) for model in models if not model.is_baseline)
    return {
        (base, revision): RowEncoder.from_corpus(corpus, base, revision, recipe.model.max_tokens)
        for base, revision in read
    }
