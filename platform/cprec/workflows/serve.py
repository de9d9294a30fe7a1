"""Serves one model over HTTP, and another one once the alias that names it has moved."""

import asyncio
import socket
from dataclasses import dataclass

from cluster.console import Say
from cluster.errors import CprecError, RunError
from cluster.ray_session import ray_session, resolve_address
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.model.base_uri import is_unbuilt, resolve_base
from cprec.model.context_length import require_context
from cprec.ranking.items import open_items
from cprec.runs.run_records import recipe_run_uri
from cprec.serving.alias_watch import AliasWatch
from cprec.serving.dispatcher import Dispatcher, Replicas
from cprec.serving.http_app import build_app
from cprec.serving.http_server import build_server, describe_address, listen
from cprec.serving.loaded_model import ServedModel
from cprec.serving.metrics import ServerMetrics
from cprec.tracking.registry import Registry, Version
from cprec.tracking.version_names import find_version, is_mutable_name
from cprec.workflows.evaluation.catalogue import open_catalogue
from cprec.workflows.evaluation.embedding import embed_on_ray
from cprec.workflows.evaluation.models import describe_model, find_model


@dataclass(frozen=True)
class ServicePlan:
    """What is served, checked before anything is loaded.

    Attributes:
        recipe: The recipe, with the domain that is served.
        registry: Where versions are looked up.
        name: The name of the model.
        served: The model that the name stands for now.
    """

    recipe: Recipe
    registry: Registry
    name: str
    served: ServedModel

    def describe(self) -> str:
        """Returns what is served, for people."""
        settings, model = self.recipe.recommend, self.served.model
        candidates = f"{settings.retrieve_k} retrieved items"
        if self.served.retriever is None:
            candidates = "given candidates"
        moves = "; it changes as the name moves" if is_mutable_name(self.name) else ""
        return (
            f"{settings.domain}: top {settings.k} of {candidates}, by {model.label}: "
            f"{describe_model(model)}{moves}"
        )


def plan_service(recipe: Recipe, registry: Registry, name: str) -> ServicePlan:
    """Finds and checks the model that is to be served. Loads and writes nothing.

    Args:
        recipe: The sections `serve`, `recommend` and `retrieval`, and the corpus.
        registry: Where versions are looked up.
        name: The model, as `find_model` takes it.

    Raises:
        UserError: There is no such model, or it does not know the domain's items.
    """
    served = _plan_model(recipe, registry, name)
    pinned = recipe.recommend.model_copy(update={"domain": served.recipe.recommend.domain})
    return ServicePlan(recipe.model_copy(update={"recommend": pinned}), registry, name, served)


def run_service(plan: ServicePlan, token: str, say: Say) -> None:
    """Serves until SIGINT or SIGTERM, which is raised as KeyboardInterrupt at the end.

    Args:
        plan: What is served.
        token: What clients must send.
        say: Takes lines of progress.

    Raises:
        RecipeError: The address cannot be used.
        CprecError: The first model could not be loaded.
    """
    # Imported late: Ray Serve is slow to import, and a dry run does not need it.
    from cprec.serving.replicas import serve_session

    recipe = plan.recipe
    # Room for the replicas of two models: while one is loaded, the other one answers.
    num_cpus = recipe.cluster.num_cpus or 2 * recipe.workers * recipe.train.cpus_per_worker
    is_local = resolve_address(recipe.cluster.address) == "local"
    with (
        listen(recipe.serve, "serve") as listener,
        ray_session(recipe.cluster.address, num_cpus),
        serve_session(is_local),
    ):
        asyncio.run(_serve(plan, token, listener, say))


async def _serve(plan: ServicePlan, token: str, listener: socket.socket, say: Say) -> None:
    """Answers requests, and keeps the model the one that the name stands for."""
    settings, metrics = plan.recipe.serve, ServerMetrics()
    dispatcher = Dispatcher(settings, metrics)
    app = build_app(settings, dispatcher, metrics, token)
    server = build_server(app, int(settings.timeout_s) + 1)
    say(f"listening on {describe_address(listener)} (/docs, /ready)")
    keeping = asyncio.create_task(_keep_current(plan, dispatcher, metrics, say))
    # Ends early only if the first model was not loaded.
    keeping.add_done_callback(lambda _: setattr(server, "should_exit", True))
    try:
        await server.serve(sockets=[listener])
    finally:
        keeping.cancel()
    await keeping


async def _keep_current(
    plan: ServicePlan, dispatcher: Dispatcher, metrics: ServerMetrics, say: Say
) -> None:
    """Loads the first model, then each one that the name comes to stand for. Never returns."""
    dispatcher.switch(await _load(plan.served, metrics, say))
    say(f"ready: {plan.served.model.label}")
    if not is_mutable_name(plan.name) or plan.served.model.version is None:
        await asyncio.Event().wait()
        return
    watch = AliasWatch(plan.served.model.version)
    away = ""
    while True:
        await asyncio.sleep(plan.recipe.serve.watch_s)
        try:
            version = await asyncio.to_thread(_look_up, plan)
        except Exception as error:  # whatever MLflow raises while it is away
            if away != (away := type(error).__name__):
                say(f"{plan.name} cannot be looked up, so the model stays: {away}: {error}")
            continue
        away = ""
        watch = watch.after_look(None if version is None else version.number)
        if version is not None and watch.wants(version.number):
            watch = await _change(plan, version, watch, dispatcher, metrics, say)


async def _change(
    plan: ServicePlan,
    version: Version,
    watch: AliasWatch,
    dispatcher: Dispatcher,
    metrics: ServerMetrics,
    say: Say,
) -> AliasWatch:
    """Lets another version take over; if it cannot be loaded, the present one goes on."""
    say(f"{plan.name} is {version} now, which is being loaded")
    name = f"models:/{version.model}/{version.number}"
    try:
        served = await asyncio.to_thread(_plan_model, plan.recipe, plan.registry, name)
        replicas = await _load(served, metrics, say)
    except Exception as error:  # nothing that a model is must end a server that works
        metrics.swaps.labels("failed").inc()
        say(f"version {watch.served} goes on; {version} was not loaded: {_describe(error)}")
        return watch.after_failure(version.number)
    former = dispatcher.switch(replicas)
    metrics.swaps.labels("done").inc()
    say(f"ready: {served.model.label}")
    assert former is not None
    try:
        await dispatcher.retire(former)
    except Exception as error:
        say(f"the replicas of {former.label} were not ended: {_describe(error)}")
    return watch.after_success(version.number)


def _describe(error: Exception) -> str:
    """Returns what an error says, with its type where that is not one of ours."""
    return str(error) if isinstance(error, CprecError) else f"{type(error).__name__}: {error}"


def _look_up(plan: ServicePlan) -> Version | None:
    """Returns the version that the name stands for; None if it stands for none."""
    try:
        return find_version(plan.registry, plan.name, recipe_run_uri(plan.recipe))
    except RunError:
        return None


def _plan_model(recipe: Recipe, registry: Registry, name: str) -> ServedModel:
    """Finds and checks a model; the corpus version and the domain are fixed for all replicas."""
    model = find_model(recipe, registry, name)
    corpus, items = open_items(recipe, model)
    catalogue = open_catalogue(recipe, registry, model, corpus, items)
    base = recipe if catalogue is None else catalogue.recipe
    settings = base.recommend.model_copy(update={"domain": items.domain.name})
    pinned = base.model_copy(update={"recommend": settings, "corpus_version": corpus.version})
    return ServedModel(pinned, model, None if catalogue is None else catalogue.model)


async def _load(served: ServedModel, metrics: ServerMetrics, say: Say) -> Replicas:
    """Loads a model into replicas of its own."""
    from cprec.serving.replicas import ServeReplicas

    await asyncio.to_thread(_prepare, served, say)
    replicas = ServeReplicas(served, metrics, say)
    await replicas.start()
    return replicas


def _prepare(served: ServedModel, say: Say) -> None:
    """Builds the tiny base, and embeds the titles that have no vector, before replicas need it."""
    recipe = served.recipe
    models = [served.model, *([served.retriever] if served.retriever else [])]
    if any(is_unbuilt(recipe, model.base) for model in models):
        resolve_base(recipe, Corpus.open(recipe.corpus, recipe.corpus_version), say)
    require_context(served.model.base, served.model.revision, recipe.model.max_tokens)
    _, catalogue = served.open()
    if catalogue is not None and "titles" in recipe.retrieval.sources:
        catalogue.ensure_vectors(embed_on_ray(recipe, catalogue.model, recipe.workers), say)
