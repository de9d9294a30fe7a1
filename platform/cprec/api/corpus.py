"""Corpora of a program or a notebook: built, appended to, opened, and looked at."""

from collections.abc import Sequence

import polars as pl

from cluster.console import Say
from corpus.store import tables
from cprec.config.recipe import Recipe


class Corpus:
    """A version of a corpus: samples of many domains, made of interaction logs."""

    def __init__(self, stored: tables.Corpus) -> None:
        """Takes an opened corpus; `Corpus.open` and `Corpus.build` make one."""
        self._stored = stored

    @classmethod
    def build(cls, recipe: Recipe, *, say: Say = print) -> "Corpus":
        """Builds version 0 of the corpus of a recipe, and returns the newest version.

        A place that already holds this corpus is left as it is.

        Args:
            recipe: Its `data` says what is read, its `corpus` where the corpus is stored.
            say: Takes lines of progress.

        Raises:
            UserError: The data cannot be used, or the place holds another corpus.
        """
        from cprec.workflows.build_corpus import build_corpus

        return cls(build_corpus(recipe, say))

    @classmethod
    def open(cls, uri: str, version: int | None = None) -> "Corpus":
        """Opens a corpus.

        Args:
            uri: Path or `s3://` URI, the key `corpus` of a recipe.
            version: Its version; None: the newest.

        Raises:
            UserError: There is no corpus, or no such version.
        """
        return cls(tables.Corpus.open(uri, version))

    def append(
        self,
        recipe: Recipe,
        domains: Sequence[str] | None = None,
        *,
        held_out: bool = False,
        text: str | None = None,
        say: Say = print,
    ) -> "Corpus":
        """Appends to this corpus, tells running jobs of it, and returns the new version.

        Rows of earlier versions stay as they are. What the corpus already has is left out. The
        runs that train on it say at which sample they take up what is new.

        Args:
            recipe: Its `data` says what is read, its `storage` where the runs are.
            domains: Domains to append; None: those of the recipe.
            held_out: Whether the domains are kept out of pre-training. Without `domains`,
                `data.held_out` of the recipe is appended.
            text: File of plain text (path or URI) to append, to replay against forgetting. Then
                no domain is appended.
            say: Takes lines of progress.

        Raises:
            UserError: The data cannot be used, or does not fit the corpus.
        """
        from cprec.workflows.append_domain import append_to_corpus, notify_runs

        changes: dict[str, object] = {"corpus": self.uri}
        if domains is not None:
            key = "held_out" if held_out else "domains"
            changes["data"] = recipe.data.model_copy(update={key: tuple(domains)})
        recipe = recipe.model_copy(update=changes)
        appended = append_to_corpus(recipe, text, held_out, say)
        notify_runs(recipe, appended, say)
        return Corpus(appended)

    @property
    def uri(self) -> str:
        """Where the corpus is: an absolute path, or a URI."""
        return self._stored.uri

    @property
    def version(self) -> int:
        """Number of this version."""
        return self._stored.version

    @property
    def domains(self) -> list[str]:
        """Domains that models are pre-trained on."""
        return self._domain_names(held_out=False)

    @property
    def held_out(self) -> list[str]:
        """Domains that are kept out of pre-training, to fine-tune and evaluate on."""
        return self._domain_names(held_out=True)

    def _domain_names(self, *, held_out: bool) -> list[str]:
        domains = self._stored.statistics()["domains"]
        return [name for name, found in domains.items() if found["held_out"] == held_out]

    def statistics(self) -> pl.DataFrame:
        """Counts of each domain, over all versions up to this one.

        Returns:
            Columns domain, held_out, users, items, interactions, sparsity, samples.
        """
        domains = self._stored.statistics()["domains"]
        columns = ("domain", "held_out", "users", "items", "interactions", "sparsity", "samples")
        return pl.DataFrame([{"domain": name, **domains[name]} for name in domains]).select(columns)

    def items(self, domain: str | None = None) -> pl.DataFrame:
        """Reads the items of a domain, or of all.

        Returns:
            Columns domain, item_id, title.

        Raises:
            UserError: There is no such domain.
        """
        items = pl.DataFrame(pl.from_arrow(self._stored.read_items()))
        items = items.select("domain", "item_id", "title")
        if domain is None:
            return items
        self._require_domain(domain)
        return items.filter(pl.col("domain") == domain)

    def users(self, domain: str) -> list[str]:
        """Reads the ids of the users of a domain, sorted.

        Raises:
            UserError: There is no such domain.
        """
        from cprec.ranking.histories import read_users

        self._require_domain(domain)
        return read_users(self._stored, domain)

    def history(self, user: str, domain: str) -> pl.DataFrame:
        """Reads what a user did in a domain, oldest first.

        Returns:
            Columns item_id, title.

        Raises:
            UserError: There is no such domain, or it has no such user.
        """
        from cprec.ranking.histories import read_user_history

        self._require_domain(domain)
        return self.items()[read_user_history(self._stored, domain, user)].drop("domain")

    def _require_domain(self, domain: str) -> None:
        """Raises CorpusError, which names the domains that there are, if this is none of them."""
        if domain not in self._stored.statistics()["domains"]:
            self._stored.find_domain_source(domain, "train")

    def __repr__(self) -> str:
        """Shows where the corpus is, and what it has."""
        held_out = f", held out {', '.join(self.held_out)}" if self.held_out else ""
        return f"<Corpus {self.uri}, version {self.version}: {', '.join(self.domains)}{held_out}>"
