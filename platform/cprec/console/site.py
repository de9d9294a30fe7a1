"""What the console serves: the runs, the models and the data root of one recipe."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.console import Say
from cluster.errors import RecipeError, RunError
from cluster.storage import absolute_uri
from corpus.ingest.data_roots import find_domains
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.console.child_jobs import ChildJob, ChildJobs
from cprec.console.ranking_child import RankingChild
from cprec.console.run_follower import RunFollower
from cprec.console.views.acts import RunAction, describe_joins
from cprec.console.views.commands import Commands, Job
from cprec.console.views.encoding import encode
from cprec.console.watch import Watch
from cprec.runs.control import control_channel
from cprec.runs.control.listing import RunList
from cprec.runs.records import run_folder

if TYPE_CHECKING:
    from cprec.console.views.models import ModelsView

ANSWER_S = 60.0
"""Seconds that a run has to answer."""

MAX_WATCHES = 16
"""Runs that are remembered although nobody watches them any more."""

RUN_NAME = re.compile(r"(?!\.{1,2}$)[^/\\\x00-\x1f]{1,255}")


@dataclass(frozen=True)
class DomainView:
    """A domain of the data root, and whether the corpus has it."""

    name: str
    in_corpus: bool
    held_out: bool


@dataclass(frozen=True)
class AppendView:
    """What can be appended.

    Attributes:
        corpus: URI of the corpus.
        version: Its newest version.
        domains: The domains of the data root.
        joins: Where an append would join the runs, a line for each.
    """

    corpus: str
    version: int
    domains: list[DomainView]
    joins: list[str]


class Site:
    """Answers what browsers ask. What takes time is done in threads, or by jobs of their own."""

    def __init__(self, recipe: Recipe, commands: Commands, say: Say) -> None:
        """Describes a site. Reads nothing.

        Args:
            recipe: Storage, corpus, data root and registry.
            commands: The commands of its jobs.
            say: Takes a line for each thing that was done.
        """
        self.recipe, self.commands, self._say = recipe, commands, say
        self.storage = absolute_uri(recipe.storage)
        self.jobs = ChildJobs(say)
        self.ranking = RankingChild(commands.arguments_of(), say)
        self._list = RunList(self.storage)
        self.runs = Watch(self._look_at_runs, recipe.console.refresh_s)
        self._watches: dict[str, Watch] = {}

    def _look_at_runs(self) -> Mapping[str, bytes]:
        rows = self._list.look()
        return {"names": encode(list(rows)), **{f"run:{n}": encode(row) for n, row in rows.items()}}

    def watch_run(self, run: str) -> Watch:
        """Returns the watch of a run.

        Raises:
            RunError: This cannot be the name of a run.
        """
        self._require_name(run)
        if run not in self._watches:
            idle = [name for name, watch in self._watches.items() if not watch.is_watched]
            for name in idle[: max(len(self._watches) - MAX_WATCHES, 0)]:
                del self._watches[name]
            follower = RunFollower(self.storage, run, self.commands)
            self._watches[run] = Watch(follower.look, self.recipe.console.refresh_s)
        return self._watches[run]

    def _require_name(self, run: str) -> None:
        if not RUN_NAME.fullmatch(run):
            raise RunError("a run has a name without slashes")

    async def ask(self, run: str, action: RunAction, by: str) -> str:
        """Asks a run to do something; returns its answer.

        Raises:
            RunError: It is not under way, refused, or did not answer in time.
        """
        self._require_name(run)
        uri = run_folder(self.storage, run)
        self._say(f"{by} asks {run} to {action}")
        answer = await asyncio.to_thread(
            control_channel.send_request, uri, run, action, ANSWER_S, by
        )
        self._say(f"{run} {answer}")
        self._hurry(run)
        return f"{run} {answer}"

    def _hurry(self, run: str | None = None) -> None:
        self.runs.hurry()
        if run in self._watches:
            self._watches[run].hurry()

    # -- append

    def read_domains(self) -> AppendView:
        """Returns what can be appended, and where it would join.

        Raises:
            UserError: There is no corpus, or no data root.
        """
        data = self.recipe.data
        corpus = Corpus.open(absolute_uri(self.recipe.corpus))
        metadata = corpus.commits[-1].metadata
        known, held_out = set(metadata["domains"]), set(metadata["held_out"])
        views = [
            DomainView(name, name in known | held_out, name in held_out | set(data.held_out))
            for name in find_domains(data)
        ]
        rows = list(RunList(self.storage).look().values())
        return AppendView(corpus.uri, corpus.version, views, describe_joins(rows, corpus.uri))

    async def append(self, domain: str, commit: bool, by: str) -> ChildJob:
        """Starts the append of a domain, or its dry run.

        Raises:
            RecipeError: The data root has no such domain.
            RunError: Another job that writes is running.
        """
        if domain not in await asyncio.to_thread(find_domains, self.recipe.data):
            raise RecipeError(f"{domain}: no such domain in {self.recipe.data.root_paths}")
        return await self._start("append_domain", [f"--data.domains={domain}"], commit, by)

    # -- models

    def read_models(self) -> "ModelsView":
        """Returns the registered models of the recipe: its own, and those fine-tuned from it."""
        # Imported late: MLflow is slow to import, and a console that shows runs does not need it.
        from cprec.console.views.models import build_models
        from cprec.tracking.registry import Registry

        registries = Registry.from_recipe(self.recipe).own_and_fine_tuned()
        versions = {registry.model: registry.versions() for registry in registries}
        return build_models(
            {model: found for model, found in versions.items() if found},
            {registry.model: registry.aliases() for registry in registries},
        )

    async def promote(self, model: str, number: int, commit: bool, by: str) -> ChildJob:
        """Starts the promotion of a version, or its dry run."""
        return await self._start("promote", [f"--model=models:/{model}/{number}"], commit, by)

    async def roll_back(self, commit: bool, by: str) -> ChildJob:
        """Starts a rollback of the recipe's model, or its dry run."""
        return await self._start("promote", ["--rollback"], commit, by)

    async def _start(self, job: Job, flags: list[str], commit: bool, by: str) -> ChildJob:
        more = flags if commit else [*flags, "--dry-run"]
        arguments = self.commands.arguments_of(*more, f"--as={by}")
        return await self.jobs.start(job, arguments, self.commands.show(job, *more), by, commit)
