"""Lists what is on a storage: runs, the corpora that they train on, and registered models.

Runs are listed without the libraries that read corpora and registries, which take seconds to load.
"""

import json
import posixpath
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cluster.console import Say
from cluster.errors import CprecError
from cluster.storage import absolute_uri
from cprec.config.recipe import Recipe
from cprec.runs.control.listing import list_runs
from cprec.runs.control.overview import RunOverview


@dataclass(frozen=True)
class CorpusVersion:
    """A version of a corpus.

    Attributes:
        corpus: The corpus (URI).
        version: Number of the version.
        made: When it was committed, in UTC.
        domains: Domains that it added, or its text.
        samples: Samples that it added, of all splits.
    """

    corpus: str
    version: int
    made: str
    domains: str
    samples: int


@dataclass(frozen=True)
class ModelVersion:
    """A registered version.

    Attributes:
        model: Name of the registered model.
        version: Its number.
        aliases: Aliases that point at it, such as champion.
        run: Run (URI) that it is from.
        checkpoint: Its checkpoint (URI).
        hr1: HR@1 by evaluated domain.
    """

    model: str
    version: int
    aliases: tuple[str, ...]
    run: str
    checkpoint: str
    hr1: Mapping[str, float]


MAX_REMARK = 100
"""Characters of why a run ended, or what it waits for."""

Listed = Mapping[str, Sequence[Any]]
"""What was listed: runs, corpora (their versions) and models (theirs), those that were asked for.

The values are sequences of `RunOverview`, `CorpusVersion` and `ModelVersion`.
"""


def list_storage(recipe: Recipe, parts: Collection[str], say: Say) -> Listed:
    """Lists what the storage of a recipe holds.

    Args:
        recipe: Storage, corpus and registry.
        parts: What is asked for: some of runs, corpora and models.
        say: Takes a line for each corpus of a run that cannot be opened.
    """
    listed: dict[str, Sequence[Any]] = {}
    runs = [] if parts == ("models",) else list_runs(absolute_uri(recipe.storage))
    if "runs" in parts:
        listed["runs"] = runs
    if "corpora" in parts:
        listed["corpora"] = list_corpora(recipe, runs, say)
    if "models" in parts:
        listed["models"] = list_models(recipe)
    return listed


def list_corpora(recipe: Recipe, runs: Sequence[RunOverview], say: Say) -> list[CorpusVersion]:
    """Lists the versions of the recipe's corpus and of those that runs train on.

    Args:
        recipe: The recipe; its corpus need not exist yet.
        runs: The runs of the storage.
        say: Takes a line for each corpus of a run that cannot be opened.
    """
    from corpus.inspect.page import describe_versions
    from corpus.store.tables import Corpus

    own = absolute_uri(recipe.corpus)
    uris = dict.fromkeys([own, *(run.corpus for run in runs if run.corpus)])
    versions = []
    for uri in uris:
        try:
            corpus = Corpus.open(uri)
        except CprecError as error:
            if uri != own:
                say(f"not listed: {error}")
            continue
        versions += [
            CorpusVersion(uri, row["version"], row["time"], row["domains"], row["samples"])
            for row in describe_versions(corpus)
        ]
    return versions


def list_models(recipe: Recipe) -> list[ModelVersion]:
    """Lists the versions of the recipe's model, and of those fine-tuned from it."""
    from cprec.tracking.registry import EVALUATION_TAG, Registry

    listed = []
    for of_model in Registry.from_recipe(recipe).own_and_fine_tuned():
        aliases = of_model.aliases()
        listed += [
            ModelVersion(
                version.model,
                version.number,
                tuple(alias for alias, number in aliases.items() if number == version.number),
                version.run,
                version.checkpoint,
                _read_hr1(version.tags, EVALUATION_TAG),
            )
            for version in of_model.versions()
        ]
    return listed


def _read_hr1(tags: Mapping[str, str], prefix: str) -> dict[str, float]:
    """Returns HR@1 by domain, from the tags of a version that begin with a prefix."""
    metrics = {
        tag.removeprefix(prefix): json.loads(text)
        for tag, text in sorted(tags.items())
        if tag.startswith(prefix)
    }
    return {domain: float(values["hr"]["1"]) for domain, values in metrics.items()}


def format_lists(listed: Listed) -> str:
    """Returns what was listed as aligned columns, one row a line, without cutting any."""
    blocks = []
    header: tuple[str, ...]
    if "runs" in listed:
        header = (
            "RUN",
            "STATE",
            "PHASE",
            "SAMPLES",
            "OF",
            "LOSS",
            "CHECKPOINT",
            "SEEN (UTC)",
            "REMARK",
        )
        blocks.append(_align(header, map(_run_cells, listed["runs"]), right=(3, 4, 5)))
    if "corpora" in listed:
        header = ("CORPUS", "VERSION", "MADE (UTC)", "SAMPLES", "ADDED")
        blocks.append(_align(header, map(_corpus_cells, listed["corpora"]), right=(1, 3)))
    if "models" in listed:
        header = ("MODEL", "VERSION", "ALIASES", "RUN", "HR@1")
        blocks.append(_align(header, map(_model_cells, listed["models"]), right=(1,)))
    return "\n\n".join(blocks)


def _run_cells(run: RunOverview) -> tuple[str, ...]:
    """Returns the cells of a run's row; empty where it has not told."""
    seen = f"{datetime.fromtimestamp(run.time, UTC):%Y-%m-%d %H:%M}" if run.time else ""
    return (
        run.run,
        run.state,
        run.phase or "",
        f"{run.samples:,}" if run.phase else "",
        f"{run.annealing_end:,}" if run.annealing_end else "",
        "" if run.loss is None else f"{run.loss:.4f}",
        posixpath.basename(run.checkpoint or ""),
        seen,
        " ".join(run.waits_for.split())[:MAX_REMARK],
    )


def _corpus_cells(version: CorpusVersion) -> tuple[str, ...]:
    """Returns the cells of a corpus version's row."""
    made, samples = version.made[:16], f"{version.samples:,}"
    return version.corpus, str(version.version), made, samples, version.domains


def _model_cells(version: ModelVersion) -> tuple[str, ...]:
    """Returns the cells of a registered version's row."""
    metrics = ", ".join(f"{domain} {value:.4f}" for domain, value in version.hr1.items())
    aliases, run = ", ".join(version.aliases), version.run.rsplit("/", 1)[-1]
    return version.model, str(version.version), aliases, run, metrics


def _align(header: tuple[str, ...], rows: Iterable[tuple[str, ...]], right: Collection[int]) -> str:
    """Aligns columns; those of the given numbers to the right.

    Not a table of rich, which takes seconds for a thousand rows, and folds them.
    """
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:>{width}}" if number in right else f"{cell:<{width}}"
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
