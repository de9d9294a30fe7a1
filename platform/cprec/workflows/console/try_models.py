"""Tries models by hand, side by side: what somebody took, candidates, and how each model ranks.

Whoever asks sends one question at a time; models that were loaded stay loaded. The console asks
so, through `jobs/try_models.py`, and loads no model itself.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import polars as pl

from cluster.console import Say
from cluster.errors import CprecError, DataError
from cluster.storage import absolute_uri
from corpus.ingest.titles import clean_title
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.config.secrets import redact
from cprec.downstream.domain import Domain, newest_of_each_user

# Imported where they are needed, for they are slow to load: what finds, reads and runs models.
if TYPE_CHECKING:
    from cprec.ranking.ranker import Ranker
    from cprec.tracking.registry import Registry

SPLIT = "test"
"""Split whose histories and candidates are offered: nobody trained on what was taken next."""

MAX_FOUND = 50
"""Users or titles that a search returns, at most."""

DRAWN = 20
"""Candidates that are drawn from a domain where none are given."""

MAX_LOADED = 3
"""Models that stay loaded; the one that was asked least recently goes."""

Answer = dict[str, Any]


class Trial:
    """Answers questions about the models and the domains of a recipe."""

    def __init__(self, recipe: Recipe, say: Say) -> None:
        """Describes a trial. Reads nothing.

        Args:
            recipe: Corpus, registry, precision, and the longest prompt.
            say: Takes lines of progress.
        """
        self._recipe, self._say = recipe, say
        self._load = lru_cache(MAX_LOADED)(self._load_ranker)
        self._read_samples = lru_cache(2)(self._read_all_samples)
        self._open_domain = lru_cache(4)(lambda name: Domain.from_corpus(self._corpus, name, SPLIT))

    @cached_property
    def _corpus(self) -> Corpus:
        return self._open_corpus()

    def _open_corpus(self) -> Corpus:
        return Corpus.open(absolute_uri(self._recipe.corpus), self._recipe.corpus_version)

    def _take_newest_corpus(self) -> None:
        """Goes on with the newest version of the corpus, if another than before."""
        newest = self._open_corpus()
        if newest.version != self._corpus.version:
            for kept in (self._read_samples, self._open_domain, self._load):
                kept.cache_clear()
        self._corpus = newest

    @cached_property
    def _registry(self) -> "Registry":
        from cprec.tracking.registry import Registry

        return Registry.from_recipe(self._recipe)

    def answer(self, question: Mapping[str, Any]) -> Answer:
        """Answers one question.

        Args:
            question: `ask` says what, and the other fields are the arguments of that method.

        Returns:
            The answer; or `error`, a sentence, where the question was wrong.
        """
        asks: Mapping[str, Callable[..., Answer]] = {
            "choices": self.choices,
            "users": self.users,
            "sample": self.sample,
            "titles": self.titles,
            "rank": self.rank,
        }
        arguments = {name: value for name, value in question.items() if name != "ask"}
        try:
            return asks[question["ask"]](**arguments)
        except CprecError as error:
            return {"error": redact(str(error))}
        except Exception as error:  # one question must not end what others wait for
            return {"error": redact(f"{type(error).__name__}: {error}")}

    def choices(self) -> Answer:
        """Returns the domains of the corpus that have samples to try, and the models.

        What is asked after it is answered from the version of the corpus that is the newest now.
        """
        self._take_newest_corpus()
        domains = [
            name
            for name, domain in self._corpus.statistics()["domains"].items()
            if domain["splits"][SPLIT]
        ]
        models = [
            {
                "name": f"models:/{version.model}/{version.number}",
                "title": version.title,
                "aliases": [a for a, number in aliases.items() if number == version.number],
            }
            for registry in self._registry.own_and_fine_tuned()
            for aliases in [registry.aliases()]
            for version in reversed(registry.versions())
        ]
        return {"domains": domains, "models": models}

    def users(self, domain: str, find: str) -> Answer:
        """Returns users of a domain whose ids hold a text, with the length of their history."""
        samples = self._read_samples(domain)
        found = samples.filter(pl.col("user_id").str.contains(find, literal=True))
        shown = found.head(MAX_FOUND).with_columns(length=pl.col("history").list.len())
        return {"found": len(found), "users": shown.select("user_id", "length").to_dicts()}

    def sample(self, domain: str, user: str) -> Answer:
        """Returns history and candidates of a user as titles, and which one was taken next.

        Raises:
            DataError: The domain has no such user.
        """
        found = self._read_samples(domain).filter(pl.col("user_id") == user)
        if not len(found):
            raise DataError(f"{user}: no user of {domain} with a sample of the {SPLIT} split")
        row = found.row(0, named=True)
        titles = self._open_domain(domain).titles
        return {
            "history": [titles[i] for i in row["history"]],
            "candidates": [titles[i] for i in row["candidates"]],
            "taken": titles[row["candidates"][row["target"]]],
        }

    def titles(self, domain: str, find: str) -> Answer:
        """Returns titles of a domain that hold a text."""
        titles = [title for title in self._titles_of(domain) if find.lower() in title.lower()]
        return {"found": len(titles), "titles": titles[:MAX_FOUND]}

    def rank(
        self, domain: str, models: Sequence[str], history: Sequence[str], candidates: Sequence[str]
    ) -> Answer:
        """Ranks candidates by several models.

        Args:
            domain: The domain, whose items hybrid models know by their titles.
            models: The models, as `find_model` takes them.
            history: Titles, the oldest first.
            candidates: Titles; without any, `DRAWN` are drawn from the domain.

        Returns:
            The ranking of each model: its titles with their shares; or its error.
        """
        history = [title for text in history if (title := clean_title(text))]
        candidates = [title for text in candidates if (title := clean_title(text))]
        if not candidates:
            others = sorted({*self._titles_of(domain)} - {*history})
            rng = np.random.default_rng(len(history))
            candidates = rng.permutation(others)[:DRAWN].tolist()
        candidates = list(dict.fromkeys(candidates))
        return {"rankings": [self._rank_by(domain, name, history, candidates) for name in models]}

    def _rank_by(
        self, domain: str, name: str, history: Sequence[str], candidates: Sequence[str]
    ) -> Answer:
        try:
            ranker = self._load(name, domain)
            if ranker.is_hybrid:
                query = ranker.encode_items(
                    self._find_items(domain, history), self._find_items(domain, candidates)
                )
            else:
                query = ranker.encode_titles(history, candidates)
            ranking = ranker.rank([query])[0]
        except CprecError as error:
            return {"model": name, "error": redact(str(error)), "items": []}
        ranked = zip(ranking.order.tolist(), ranking.probabilities.tolist(), strict=True)
        items = [{"title": candidates[i], "share": share} for i, share in ranked]
        return {"model": name, "error": None, "items": items}

    def _find_items(self, domain: str, titles: Sequence[str]) -> list[int]:
        """Returns the index in the catalogue of each title.

        Raises:
            DataError: The domain has no item of such a title.
        """
        of_domain = self._open_domain(domain)
        index = {of_domain.titles[i]: i for i in of_domain.item_indices.tolist()}
        if unknown := next((title for title in titles if title not in index), None):
            raise DataError(f"{unknown!r}: no item of {domain}, and a hybrid model knows no other")
        return [index[title] for title in titles]

    def _titles_of(self, domain: str) -> list[str]:
        of_domain = self._open_domain(domain)
        return [of_domain.titles[i] for i in of_domain.item_indices.tolist()]

    def _read_all_samples(self, domain: str) -> pl.DataFrame:
        """Reads the newest sample of each user of a domain, by user."""
        samples = self._corpus.read_samples(self._open_domain(domain).source, SPLIT)
        newest = pl.DataFrame(pl.from_arrow(newest_of_each_user(samples))).sort("user_id")
        return newest.select(pl.col("user_id").cast(pl.String), "history", "candidates", "target")

    def _load_ranker(self, name: str, domain: str) -> "Ranker":
        """Loads a model, which is asked about a domain."""
        from cprec.model.base_uri import is_unbuilt, resolve_base
        from cprec.ranking.ranker import Ranker
        from cprec.workflows.evaluation.models import find_model

        model = find_model(self._recipe, self._registry, name)
        if is_unbuilt(self._recipe, model.base):
            resolve_base(self._recipe, self._corpus, self._say)
        self._say(f"loading {name}")
        return Ranker.load(self._recipe, model, self._say, self._open_domain(domain))


def answer_lines(recipe: Recipe, questions: IO[str], answers: IO[str], say: Say) -> None:
    """Answers questions, a JSON object a line, until there are no more.

    Args:
        recipe: As for `Trial`.
        questions: Where they come from.
        answers: Where each answer goes, as one line.
        say: Takes lines of progress.
    """
    trial = Trial(recipe, say)
    for line in questions:
        try:
            question = json.loads(line)
        except ValueError as error:
            answer: Answer = {"error": f"no JSON: {error}"}
        else:
            answer = trial.answer(question)
        answers.write(f"{json.dumps(answer)}\n")
        answers.flush()
