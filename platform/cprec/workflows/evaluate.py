"""Compares models on the samples of one domain, all with the same candidates.

Below `<storage>/<run>/evaluation/<domain>/`:

    <model>/predictions.parquet    what the model answered
    <model>/metrics.json           written after the predictions: without it, they do not count
    comparison.json                all models of the last comparison

Predictions from equal inputs are not made again. Other modes than `score` have `-<mode>` in the
names of the folder and of the comparison.
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
from cprec.baselines.training import BASELINE_NAMES
from cprec.config.recipe import Recipe
from cprec.downstream import forgetting, stored_baselines
from cprec.downstream.scoring import EvaluatedModel, generate_on_ray, score_model
from cprec.evaluate import predictions
from cprec.evaluate.comparison import Comparison, ComparisonRow
from cprec.evaluate.metrics import average_metrics, hits
from cprec.evaluate.significance import holm_correction, paired_t_test, permutation_test
from cprec.model.base_uri import resolve_base
from cprec.model.context_length import require_context
from cprec.runs import checkpoint
from cprec.runs.records import COMPARISON_FILE, EVALUATION_FOLDER, EVENTS_FILE, run_folder
from cprec.runs.run_records import read_run_records
from cprec.runs.token_form import TOKEN_FORM
from cprec.stream.row_encoder import RowEncoder
from cprec.tracking import report
from cprec.tracking.registry import Registry

PREDICTIONS = "predictions.parquet"
METRICS = "metrics.json"
SEARCH = "search.json"


@dataclass(frozen=True)
class _Evaluated:
    """One model, or one seed of it, with its predictions and the content of its metrics.json."""

    model: EvaluatedModel
    predictions: pa.Table
    metrics: dict[str, Any]


def compare_models(
    recipe: Recipe, registry: Registry, names: Sequence[str], say: Say
) -> Comparison:
    """Scores models, stores what they answered, and compares each with the first.

    Args:
        recipe: Domain, split and mode, and where the run and the corpus are.
        registry: Where versions are found, and where their metrics are noted.
        names: Models as in `evaluate.models`; the first is the reference.
        say: Takes lines of progress.

    Raises:
        UserError: A model, the samples or the text are missing; nothing has been scored then.
    """
    corpus, domain, samples = load_samples(recipe)
    models = find_models(recipe, registry, names, corpus, say)
    for model in models:
        if model.checkpoint is not None:
            checkpoint.verify(model.checkpoint)
        if not model.is_baseline:
            require_context(model.base, model.revision, recipe.model.max_tokens)
    run_uri = run_folder(storage.absolute_uri(recipe.storage), recipe.run)
    folder = storage.join(run_uri, EVALUATION_FOLDER, domain)
    # Before scoring, which takes long: the text may be missing.
    perplexities = forgetting.measure_perplexities(recipe, folder, models, say)
    tables = _load_or_predict(recipe, folder, models, corpus, domain, samples, say)
    evaluated = [
        _store_metrics(recipe, registry, folder, corpus, domain, model, table)
        for model, table in zip(models, tables, strict=True)
    ]
    rows = _compare_with_first(evaluated, perplexities)
    file_name = _comparison_filename(recipe)
    comparison = Comparison(
        domain, recipe.evaluate.split, _add_holm_correction(run_uri, domain, rows, file_name)
    )
    storage.write_text(
        storage.join(folder, file_name), json.dumps(asdict(comparison), indent=2, allow_nan=False)
    )
    if storage.exists(storage.join(run_uri, EVENTS_FILE)):
        report.write(read_run_records(run_uri))
    return comparison


def load_samples(recipe: Recipe) -> tuple[Corpus, str, pa.Table]:
    """Reads the samples that models are scored on.

    Returns:
        The corpus, the name of the domain, and its samples in the order of their unsigned ids.

    Raises:
        CorpusError: The domain has no samples in this split.
        RecipeError: No domain is named.
    """
    domain = recipe.evaluate.domain or next(iter(recipe.data.held_out), None)
    if domain is None:
        raise RecipeError(
            "evaluate.domain: none given, and data.held_out is empty; name a domain of the corpus"
        )
    corpus = Corpus.open(recipe.corpus, recipe.corpus_version)
    split = recipe.evaluate.split
    samples = corpus.read_samples(corpus.find_domain_source(domain, split), split)
    # The corpus stores the bits of an unsigned id in a signed column.
    ids = samples["sample_id"].to_numpy().view(np.uint64)
    order = np.argsort(ids, kind="stable")[: recipe.evaluate.max_users]
    return corpus, domain, samples.take(order)


def find_models(
    recipe: Recipe, registry: Registry, names: Sequence[str], corpus: Corpus, say: Say
) -> list[EvaluatedModel]:
    """Finds the models that names stand for; a model with several seeds is found once per seed.

    A version has its base in its lineage. Any other model takes the base of the versions beside
    it, or without any the recipe's.

    Args:
        recipe: Base, seeds of baselines, and the run whose searches are looked at.
        registry: Where versions are looked up.
        names: `base`, a baseline, `candidate`, `champion`, `previous`, a version number, a search
            of this run, or a checkpoint's URI.
        corpus: Its titles are needed where the tiny base has to be built.
        say: Takes lines of progress.

    Raises:
        RunError: A version does not exist, or a model would take its base from versions that have
            different ones.
        RecipeError: There are no names.
    """
    if not names:
        raise RecipeError(
            "evaluate.models: empty; give base, sasrec, candidate, a version number or a "
            "checkpoint's URI, comma-separated"
        )
    versions = {
        name: version
        for name in dict.fromkeys(names)
        if (version := registry.find_version(name)) is not None
    }
    version_bases = {
        name: (version.tags["base"], version.tags.get("base_revision") or None)
        for name, version in versions.items()
        if "base" in version.tags
    }

    @cache
    def implied_base(name: str) -> tuple[str, str | None]:
        """Returns base and revision of a model that does not name its own."""
        # Versions of earlier releases do not say what their base's files were.
        known = {base: revision for base, revision in version_bases.values() if revision}
        bases = {(base, revision or known.get(base)) for base, revision in version_bases.values()}
        if len(bases) > 1:
            shown = ", ".join(
                f"{version} on {base}" for version, (base, _) in version_bases.items()
            )
            raise RunError(
                f"evaluate.models: {name} takes the base of the versions beside it, which stand on "
                f"different ones ({shown}); name fewer"
            )
        if bases:
            return bases.pop()
        return resolve_base(recipe, corpus, say), recipe.model.revision

    models: list[EvaluatedModel] = []
    for name in dict.fromkeys(names):
        if name == "base":
            models.append(EvaluatedModel(name, name, *implied_base(name)))
        elif name in BASELINE_NAMES:
            seeds = range(recipe.seed, recipe.seed + recipe.baseline.seeds)
            models += [
                EvaluatedModel(name, f"{name}-seed{seed}", "", None, seed=seed) for seed in seeds
            ]
        elif version := versions.get(name):
            base, revision = version_bases.get(name) or implied_base(name)
            label = f"version-{version.number}"
            models.append(
                EvaluatedModel(name, label, base, revision, version.checkpoint, version.number)
            )
        elif seed_checkpoints := _find_tuned_checkpoints(recipe, name):
            models += [
                EvaluatedModel(name, f"{name}-{seed}", *implied_base(name), uri)
                for seed, uri in seed_checkpoints
            ]
        else:
            uri = storage.absolute_uri(name)
            label = _checkpoint_label(uri, models)
            models.append(EvaluatedModel(name, label, *implied_base(name), uri))
    return list({model.label: model for model in models}.values())


def _find_tuned_checkpoints(recipe: Recipe, name: str) -> list[tuple[str, str]]:
    """Returns (label, checkpoint) of each seed of a search's best learning rate.

    Empty where this run has no finished search of this name on the domain.
    """
    if "/" in name:
        return []
    run_uri = run_folder(storage.absolute_uri(recipe.storage), recipe.run)
    domain = recipe.evaluate.domain or next(iter(recipe.data.held_out), "")
    search = storage.join(run_uri, "finetune", domain, name, SEARCH)
    if not storage.exists(search):
        return []
    return [
        (f"seed{seed['seed']}", seed["checkpoint"])
        for seed in json.loads(storage.read_text(search))["winner"]["seeds"]
    ]


def _checkpoint_label(uri: str, others: Sequence[EvaluatedModel]) -> str:
    """Returns `<run>-<checkpoint>`, with a hash where another checkpoint is called the same."""
    run = posixpath.basename(posixpath.dirname(posixpath.dirname(uri)))
    label = f"{run}-{posixpath.basename(uri)}"
    if any(other.label == label and other.checkpoint != uri for other in others):
        label += f"-{storage.sha256(uri.encode())[:6]}"
    return label


def _load_or_predict(
    recipe: Recipe,
    folder: str,
    models: Sequence[EvaluatedModel],
    corpus: Corpus,
    domain: str,
    samples: pa.Table,
    say: Say,
) -> list[pa.Table]:
    """Returns each model's predictions: stored ones of equal inputs, else new ones, stored too."""
    tables = {
        model.label: _read_predictions(
            _model_folder(recipe, folder, model), _prediction_inputs(recipe, corpus, domain, model)
        )
        for model in models
    }
    missing = [model for model in models if tables[model.label] is None]
    if missing:
        workers = min(recipe.workers, len(samples))
        num_cpus = recipe.cluster.num_cpus or workers * recipe.train.cpus_per_worker
        with ray_session(recipe.cluster.address, num_cpus):
            encoders = _row_encoders(recipe, corpus, missing)
            for model in missing:
                say(f"scoring {model.label}: {len(samples):,} samples, {workers} worker(s)")
                place = _model_folder(recipe, folder, model)
                # Metrics must never stand beside predictions that they are not from.
                storage.remove(storage.join(place, METRICS))
                encoder = encoders.get((model.base, model.revision))
                table = _predict(recipe, model, corpus, domain, samples, workers, encoder, say)
                storage.write_bytes(storage.join(place, PREDICTIONS), predictions.to_bytes(table))
                tables[model.label] = table
    return [tables[model.label] for model in models]


def _predict(
    recipe: Recipe,
    model: EvaluatedModel,
    corpus: Corpus,
    domain: str,
    samples: pa.Table,
    workers: int,
    encoder: RowEncoder | None,
    say: Say,
) -> pa.Table:
    """Returns what a model answers to the samples, by scores or by text."""
    if _evaluation_mode(recipe, model) == "score":
        scores = score_model(recipe, model, corpus, domain, samples, workers, encoder, say)
        return predictions.from_scores(samples, scores, corpus.read_titles())
    answers = generate_on_ray(recipe, model, corpus, domain, samples, workers, encoder, say)
    return predictions.from_answers(samples, answers)


def _read_predictions(folder: str, inputs: Mapping[str, Any]) -> pa.Table | None:
    """Returns the stored predictions; None where there are none, or none of these inputs."""
    metrics = storage.join(folder, METRICS)
    if not storage.exists(metrics):
        return None
    if json.loads(storage.read_text(metrics)).get("inputs") != inputs:
        return None
    return predictions.from_bytes(storage.read_bytes(storage.join(folder, PREDICTIONS)))


def _prediction_inputs(
    recipe: Recipe, corpus: Corpus, domain: str, model: EvaluatedModel
) -> dict[str, Any]:
    """Returns everything that predictions depend on: equal inputs, equal predictions."""
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
        **({} if model.is_baseline else {"token_form": TOKEN_FORM}),
    }


def _row_encoders(
    recipe: Recipe, corpus: Corpus, models: Sequence[EvaluatedModel]
) -> dict[tuple[str, str | None], RowEncoder]:
    """Returns the row encoders of the language models by (base, revision).

    Models on one base share one, so that it is put into the object store once. Baselines need none.
    """
    bases = dict.fromkeys((model.base, model.revision) for model in models if not model.is_baseline)
    return {
        (base, revision): RowEncoder.from_corpus(corpus, base, revision, recipe.model.max_tokens)
        for base, revision in bases
    }


def _evaluation_mode(recipe: Recipe, model: EvaluatedModel) -> str:
    """Returns the mode in which a model is evaluated: a baseline can only score."""
    return "score" if model.is_baseline else recipe.evaluate.mode


def _model_folder(recipe: Recipe, folder: str, model: EvaluatedModel) -> str:
    """Returns the folder of a model's predictions and metrics, one for each mode."""
    mode = _evaluation_mode(recipe, model)
    return storage.join(folder, model.label if mode == "score" else f"{model.label}-{mode}")


def _comparison_filename(recipe: Recipe) -> str:
    mode = recipe.evaluate.mode
    return COMPARISON_FILE if mode == "score" else f"comparison-{mode}.json"


def _store_metrics(
    recipe: Recipe,
    registry: Registry,
    folder: str,
    corpus: Corpus,
    domain: str,
    model: EvaluatedModel,
    table: pa.Table,
) -> _Evaluated:
    """Computes a model's metrics, writes metrics.json and, for a version, notes them on it."""
    metrics = predictions.to_metrics(table, model.label, domain, _evaluation_mode(recipe, model))
    with_inputs = {**metrics, "inputs": _prediction_inputs(recipe, corpus, domain, model)}
    storage.write_text(
        storage.join(_model_folder(recipe, folder, model), METRICS),
        json.dumps(with_inputs, indent=2),
    )
    if model.version is not None and recipe.evaluate.mode == "score":
        registry.log_evaluation(model.version, domain, metrics)
    return _Evaluated(model, table, metrics)


def _compare_with_first(
    evaluated: Sequence[_Evaluated], perplexities: Mapping[str, float]
) -> list[ComparisonRow]:
    """Returns one row per name, each but the first tested against the first.

    Args:
        evaluated: Models in the order in which they were asked for, one for each seed.
        perplexities: Perplexity of the text by label, where it was measured.
    """
    seeds_by_name: dict[str, list[_Evaluated]] = {}
    for result in evaluated:
        seeds_by_name.setdefault(result.model.name, []).append(result)
    tables_by_name = {
        name: [seed.predictions for seed in seeds] for name, seeds in seeds_by_name.items()
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
            _add_significance(row, tables_by_name[reference.name], tables_by_name[row.name])
            for row in others
        ),
    ]


def _mean_perplexity(
    perplexities: Mapping[str, float], seeds: Sequence[EvaluatedModel]
) -> float | None:
    """Returns the mean perplexity of a model's seeds; None where it was not measured."""
    values = [perplexities[model.label] for model in seeds if model.label in perplexities]
    return float(np.mean(values)) if values else None


def _add_significance(
    row: ComparisonRow, reference: Sequence[pa.Table], tables: Sequence[pa.Table]
) -> ComparisonRow:
    """Returns a row with its tests against the reference.

    Args:
        row: The row of a model.
        reference: Predictions of the reference, one table for each seed.
        tables: Predictions of the model, one table for each seed.
    """
    # [seeds, samples] each
    reference_hits = np.stack([_hits_at_1(table) for table in reference])
    model_hits = np.stack([_hits_at_1(table) for table in tables])
    mean_reference = reference_hits.mean(axis=0)
    mean_model = model_hits.mean(axis=0)
    over_seeds = None
    # A reference with a single seed, such as the base, is compared with each seed of the model.
    if len(model_hits) > 1 and len(reference_hits) in (1, len(model_hits)):
        over_seeds = paired_t_test(
            np.broadcast_to(reference_hits.mean(axis=1), len(model_hits)), model_hits.mean(axis=1)
        )
    return replace(
        row,
        against=paired_t_test(mean_reference, mean_model),
        permutation_p=permutation_test(mean_reference, mean_model),
        over_seeds=over_seeds,
    )


def _hits_at_1(table: pa.Table) -> NDArray[np.float64]:
    """Returns HR@1 of each sample [n]."""
    return hits(predictions.to_ranks(table), 1)


def _add_holm_correction(
    run_uri: str, domain: str, rows: Sequence[ComparisonRow], file_name: str
) -> list[ComparisonRow]:
    """Returns the rows with p corrected for the domains on which this run compared the same models.

    Args:
        run_uri: Folder of the run.
        domain: Domain of the rows.
        rows: Rows of the comparison, the reference first.
        file_name: Name of the comparison files of this mode.
    """
    evaluation = storage.join(run_uri, EVALUATION_FOLDER)
    files = [
        storage.join(evaluation, other, file_name)
        for other in storage.list_names(evaluation)
        if other != domain
    ]
    comparisons = [json.loads(storage.read_text(file)) for file in files if storage.exists(file)]

    def p_values_elsewhere(name: str) -> list[float]:
        """Returns p of the same model against the same reference on the other domains."""
        return [
            row["against"]["p"]
            for comparison in comparisons
            for row in comparison["rows"]
            if comparison["rows"][0]["name"] == rows[0].name
            and row["name"] == name
            and row["against"]
        ]

    return [
        replace(row, holm_p=holm_correction([row.against.p, *p_values_elsewhere(row.name)])[0])
        if row.against
        else row
        for row in rows
    ]
