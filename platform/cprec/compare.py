"""Models against each other on one domain's samples, all with the same candidates: found by the registry, scored on Ray, kept in the run.

Written below `<storage>/<run>/evaluation/<domain>/`: `<model>/predictions.parquet`, `<model>/metrics.json` (last: what has none is not there), and
`comparison.json`. Predictions that were made from the same inputs are not made again.
"""

import itertools
import json
import posixpath
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from cluster import storage
from cluster.errors import CorpusError, CprecError, RecipeError, RunError
from cluster.session import session
from corpus.table import Corpus
from cprec import report
from cprec.evaluate import predictions
from cprec.evaluate.metrics import hits, metrics
from cprec.evaluate.rank import score
from cprec.evaluate.significance import Paired, paired
from cprec.model import adapter, backbone
from cprec.model.base import resolve
from cprec.recipe import Recipe
from cprec.registry import Registry, Version
from cprec.stream.segments import Text
from cprec.train import checkpoint
from cprec.train.record import EVENTS, run_uri

Say = Callable[[str], None]

PREDICTIONS, METRICS, COMPARISON = "predictions.parquet", "metrics.json", "comparison.json"
ALIASES = ("candidate", "champion", "previous")


@dataclass(frozen=True)
class Contender:
    """A model to be scored: a base and, unless it is the base itself, a checkpoint. name: as it was asked for; label: what it is, and its folder."""

    name: str
    label: str
    base: str
    revision: str | None
    checkpoint: str | None = None
    version: int | None = None


@dataclass(frozen=True)
class Row:
    """A model's metrics, and its HR@1 against the reference (None for the reference itself). name: as it was asked for; model: what it is."""

    name: str
    model: str
    metrics: Mapping[str, Any]
    against: Paired | None


@dataclass(frozen=True)
class Comparison:
    """rows: one per model, the reference first."""

    domain: str
    split: str
    rows: Sequence[Row]


def contenders(recipe: Recipe, registry: Registry, names: Sequence[str], corpus: Corpus, say: Say) -> list[Contender]:
    """The models behind names: base, candidate, champion, previous, a version number, or a checkpoint's URI.

    A version brings its base with it, by its lineage; `base` and a bare checkpoint take the base of the versions beside them, else the recipe's.
    Raises RunError for a name that means nothing yet, or models of different bases; RecipeError without any.
    """
    if not names:
        raise RecipeError("evaluate.models: empty; give base, candidate, champion, a version number or a checkpoint's URI, comma-separated")
    versions = {name: _version(registry, name) for name in dict.fromkeys(names) if name in ALIASES or name.isdecimal()}
    bases = {(v.tags["base"], v.tags.get("base_revision") or None) for v in versions.values() if "base" in v.tags}
    if len(bases) > 1:
        raise RunError(
            f"evaluate.models: these versions stand on different bases ({', '.join(sorted(b for b, _ in bases))}); compare them one by one"
        )
    base, revision = bases.pop() if bases else (resolve(recipe, corpus, say), recipe.model.revision)
    found = []
    for name in dict.fromkeys(names):
        if name == "base":
            found.append(Contender(name, "base", base, revision))
        elif version := versions.get(name):
            found.append(Contender(name, f"version-{version.number}", base, revision, version.checkpoint, version.number))
        else:
            uri = storage.absolute(name)
            run, attempt = posixpath.basename(posixpath.dirname(posixpath.dirname(uri))), posixpath.basename(uri)
            found.append(Contender(name, f"{run}-{attempt}", base, revision, uri))
    return list({c.label: c for c in found}.values())


def samples_to_score(recipe: Recipe) -> tuple[Corpus, str, pa.Table]:
    """The corpus, the domain and its samples that models are scored on, in the order of their (unsigned) ids.

    Raises CorpusError when the domain has none in this split, RecipeError when no domain is named.
    """
    domain = recipe.evaluate.domain or next(iter(recipe.data.held_out), None)
    if domain is None:
        raise RecipeError("evaluate.domain: none given, and data.held_out is empty; name a domain of the corpus")
    corpus = Corpus.open(recipe.corpus, recipe.corpus_version)
    split = recipe.evaluate.split
    sources = {stream.source for stream in corpus.streams(split)}
    source = next((s for s in (f"downstream/{domain}", f"domain/{domain}") if s in sources), None)
    if source is None:
        known = ", ".join(sorted(s.partition("/")[2] for s in sources)) or "none"
        raise CorpusError(
            f"{recipe.corpus}, version {corpus.version}: domain {domain} has no {split} samples; evaluate.domain may be one of: {known}"
        )
    samples = corpus.samples(source, split)
    order = np.argsort(samples["sample_id"].to_numpy().view(np.uint64), kind="stable")[: recipe.evaluate.max_users]
    return corpus, domain, samples.take(order)


def compare(recipe: Recipe, registry: Registry, names: Sequence[str], say: Say) -> Comparison:
    """Score the models, write their artefacts, note their metrics on their versions, and compare each with the first. `say` gets lines of progress.

    Raises UserError for models or samples that are not there, before anything is scored.
    """
    corpus, domain, samples = samples_to_score(recipe)
    models = contenders(recipe, registry, names, corpus, say)
    for model in models:
        if model.checkpoint is not None:
            checkpoint.verify(model.checkpoint)
    run = run_uri(storage.absolute(recipe.storage), recipe.run)
    folder = storage.join(run, "evaluation", domain)
    tables = _predictions(recipe, folder, models, corpus, samples, say)
    rows: list[Row] = []
    for model, table in zip(models, tables, strict=True):
        result = metrics(model.label, domain, predictions.ranks_of(table), table["history_length"].to_numpy())
        written = {**result, "inputs": _inputs(recipe, corpus, model)}
        storage.write_text(storage.join(folder, model.label, METRICS), json.dumps(written, indent=2))
        if model.version is not None:
            registry.measured(model.version, domain, result)
        rows.append(Row(model.name, model.label, result, paired(_hr1(tables[0]), _hr1(table)) if rows else None))
    comparison = Comparison(domain, recipe.evaluate.split, rows)
    storage.write_text(storage.join(folder, COMPARISON), json.dumps(asdict(comparison), indent=2, allow_nan=False))
    if storage.exists(storage.join(run, EVENTS)):
        report.write(run)
    return comparison


def _version(registry: Registry, name: str) -> Version:
    if name.isdecimal():
        return registry.version(int(name))
    found = registry.alias(name)  # type: ignore[arg-type]
    if found is None:
        todo = {"candidate": "run jobs/cpt.py", "champion": "run jobs/promote.py", "previous": "it appears with the second promotion"}[name]
        raise RunError(f"model {registry.model} has no {name} yet; {todo}")
    return found


def _inputs(recipe: Recipe, corpus: Corpus, model: Contender) -> dict[str, Any]:
    """All that predictions depend on: equal inputs, equal predictions."""
    return {
        "base": model.base,
        "base_revision": model.revision,
        "checkpoint": model.checkpoint,
        "precision": recipe.model.precision,
        "max_tokens": recipe.model.max_tokens,
        "corpus": corpus.uri,
        "corpus_version": corpus.version,
        "split": recipe.evaluate.split,
        "max_users": recipe.evaluate.max_users,
    }


def _predictions(recipe: Recipe, folder: str, models: Sequence[Contender], corpus: Corpus, samples: pa.Table, say: Say) -> list[pa.Table]:
    """Each model's predictions: the kept ones where their inputs are the same, else newly made and written."""
    tables = {model.label: _kept(storage.join(folder, model.label), _inputs(recipe, corpus, model)) for model in models}
    missing = [model for model in models if tables[model.label] is None]
    if missing:
        workers = min(recipe.workers, len(samples))
        with session(recipe.cluster.address, recipe.cluster.num_cpus or workers * recipe.train.cpus_per_worker):
            # Every model stands on one base, so one tokenizer reads for all.
            base, revision = missing[0].base, missing[0].revision
            text = Text.of(corpus, base, revision, recipe.model.max_tokens)
            for model in missing:
                say(f"scoring {model.label}: {len(samples):,} samples, {workers} worker(s)")
                place = storage.join(folder, model.label)
                storage.remove(storage.join(place, METRICS))  # so that it never stands beside predictions that it is not of
                table = predictions.of_scores(samples, _scores(recipe, model, samples, text, workers))
                storage.write_bytes(storage.join(place, PREDICTIONS), predictions.to_bytes(table))
                tables[model.label] = table
    return [tables[model.label] for model in models]


def _kept(folder: str, inputs: Mapping[str, Any]) -> pa.Table | None:
    """Predictions of these inputs, if there are any."""
    place = storage.join(folder, METRICS)
    if not storage.exists(place) or json.loads(storage.read_text(place)).get("inputs") != inputs:
        return None
    return predictions.from_bytes(storage.read_bytes(storage.join(folder, PREDICTIONS)))


def _hr1(table: pa.Table) -> NDArray[np.float64]:
    return hits(predictions.ranks_of(table), 1)


def _scores(recipe: Recipe, model: Contender, samples: pa.Table, text: Text, workers: int) -> NDArray[np.float64]:
    """Scores [n, candidates], from Ray tasks that each load the model and take a contiguous share of the samples."""
    bounds = np.linspace(0, len(samples), workers + 1).astype(int)
    task = ray.remote(_score_share).options(num_cpus=recipe.train.cpus_per_worker, num_gpus=recipe.train.gpus_per_worker)
    shares = [samples.slice(start, stop - start) for start, stop in itertools.pairwise(bounds)]
    try:
        parts = ray.get([task.remote(recipe, model, share, text) for share in shares])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CprecError):
            raise error.cause from None  # without the worker's traceback, which is no news to the user
        raise
    return np.concatenate(parts)


def _score_share(recipe: Recipe, model: Contender, samples: pa.Table, text: Text) -> NDArray[np.float64]:
    network, _ = backbone.load(model.base, model.revision, recipe.model.precision)
    if model.checkpoint is not None:
        with tempfile.TemporaryDirectory() as directory:
            network = adapter.load(network, storage.download(storage.join(model.checkpoint, "adapter"), Path(directory)))
    if torch.cuda.is_available():
        network = network.to("cuda")  # type: ignore[arg-type]
    return score(network, text.encoder(), samples, recipe.evaluate.batch)
