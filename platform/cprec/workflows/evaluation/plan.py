"""Plans an evaluation: finds its models and its samples, and checks that they fit together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa

from cluster.console import Say
from cluster.errors import RecipeError
from corpus.sampling.source import Source
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.downstream import forgetting
from cprec.downstream.domain import Domain, newest_of_each_user
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.downstream.trial_records import is_trial
from cprec.retrieval.catalogue import Catalogue
from cprec.tracking.lineage import read_newest_versions
from cprec.tracking.registry import Registry
from cprec.workflows.evaluation import time_split
from cprec.workflows.evaluation.catalogue import CatalogueRanking, find_retrieval_model
from cprec.workflows.evaluation.models import check_models, describe_models, find_models
from cprec.workflows.evaluation.prompted import require_sampled


@dataclass(frozen=True)
class EvaluationPlan:
    """What an evaluation compares, checked before anything is computed.

    Attributes:
        recipe: The recipe.
        corpus: The corpus, at the version that is used.
        domain: Domain of the samples.
        samples: The samples, in the order of their unsigned ids.
        models: The models, the reference first, one for each seed.
        ranking: What ranks the catalogue; None where the candidates are those of the samples.
    """

    recipe: Recipe
    corpus: Corpus
    domain: str
    samples: pa.Table
    models: Sequence[EvaluatedModel]
    ranking: CatalogueRanking | None = None

    @property
    def language_models(self) -> list[EvaluatedModel]:
        """The models that stand on a base, that of `retrieval.model` included."""
        models = [model for model in self.models if not model.is_baseline]
        return [*models, *self.ranking.embedders] if self.ranking and models else models

    @property
    def chance(self) -> float:
        """HR@1 of a random choice among the candidates."""
        if self.ranking:
            return 1 / len(self.ranking.catalogue.items)
        return float(np.mean([1 / len(row) for row in self.samples["candidates"].to_pylist()]))


def plan_evaluation(
    recipe: Recipe, registry: Registry, names: Sequence[str], say: Say
) -> EvaluationPlan:
    """Finds what is to be compared, checks that it can be, and says what it is. Writes nothing.

    Args:
        recipe: Domain, split and mode, and where the run and the corpus are.
        registry: Where versions are found.
        names: Models as in `evaluate.models`; the first is the reference.
        say: Takes lines of progress.

    Raises:
        UserError: A model, the samples or the text are missing or do not fit together.
    """
    corpus, domain, samples = load_samples(recipe)
    models = find_models(recipe, registry, names, corpus)
    check_models(recipe, models, corpus, domain)
    if any(model.uses_baseline for model in models):
        corpus.find_domain_source(domain, "train")
    require_sampled(recipe, models)
    forgetting.check_text(recipe)
    ranking = None
    if recipe.evaluate.form == "catalogue":
        retriever = find_retrieval_model(recipe, registry, names, corpus)
        items = Domain.from_corpus(corpus, domain, recipe.evaluate.split)
        ranking = CatalogueRanking(Catalogue(recipe, corpus, items, retriever), samples)
    plan = EvaluationPlan(recipe, corpus, domain, samples, models, ranking)
    days = f" of {recipe.evaluate.days}" if recipe.evaluate.days else ""
    say(
        f"{len(samples):,} {recipe.evaluate.split} samples{days} of {domain}, version "
        f"{corpus.version} of {corpus.uri}; mode {recipe.evaluate.form}, chance {plan.chance:.4g}"
    )
    for line in (*describe_models(models), *_check_split_by_time(plan, registry)):
        say(line)
    if ranking and plan.language_models:
        check_models(recipe, ranking.embedders, corpus, domain)
        say(ranking.describe())
    return plan


def _check_split_by_time(plan: EvaluationPlan, registry: Registry) -> Iterator[str]:
    """Yields up to when each model was trained, under evaluate.from_day.

    Raises:
        RunError: One was trained on interactions of that day or later.
    """
    if (from_day := plan.recipe.evaluate.from_day) is None:
        return
    corpus = plan.corpus

    @cache
    def read_by_baselines() -> tuple[Mapping[Source, int], int]:
        """Returns the newest version that baselines read, and the newest held-out time."""
        source = corpus.find_domain_source(plan.domain, "train")
        return {source: corpus.version}, time_split.newest_held_out(corpus, source)

    def read_by(model: EvaluatedModel) -> tuple[Mapping[Source, int] | None, int]:
        """Returns what a model has read: the newest versions, and the newest held-out time."""
        if model.uses_baseline:
            return read_by_baselines()
        newest = read_newest_versions(registry, model, corpus)
        source = corpus.find_domain_source(plan.domain, plan.recipe.evaluate.split)
        if not newest or source not in newest or not is_trial(model.checkpoint):
            return newest, 0
        # Fine-tuned on this domain: stopped early by its validation split, as SASRec is.
        return newest, time_split.newest_held_out(Corpus.open(corpus.uri, newest[source]), source)

    for model in plan.models:
        newest, held_out = read_by(model)
        yield time_split.check_trained_before(model.name, newest, corpus, from_day, held_out)


def load_samples(recipe: Recipe) -> tuple[Corpus, str, pa.Table]:
    """Reads the samples that models are scored on: at most `evaluate.max_users`, by smallest id.

    Of each user that is the newest one, of the days asked for: measures and tests are over users.

    Returns:
        The corpus, the name of the domain, and its samples in the order of their unsigned ids.

    Raises:
        CorpusError: The domain has no samples in this split, or none on the days asked for.
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
    samples = newest_of_each_user(time_split.select_days(samples, recipe.evaluate))
    return corpus, domain, samples.slice(0, recipe.evaluate.max_users)
