"""The models that names stand for: what they are, and whether they can be used.

Every job names models alike. Baselines, and several models by one name, are for `evaluate` only.
"""

import posixpath
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache

from cluster import storage
from cluster.errors import CorpusError, RecipeError, RunError
from corpus.settings import DEFAULT_TEMPLATE
from corpus.store.tables import Corpus
from cprec.baselines.popularity import POPULARITY
from cprec.baselines.training import BASELINE_NAMES, TEXT_BASELINES
from cprec.config.recipe import Recipe
from cprec.downstream.evaluated_model import PROMPTED_BASES, EvaluatedModel, unite_names
from cprec.downstream.known_items import require_known_items
from cprec.downstream.stored_model import MODEL_CONFIG, Form, StoredModel
from cprec.downstream.trial_records import SEARCH_FILE
from cprec.encode.prompt import PromptTemplate
from cprec.encode.text_tokenizer import text_tokenizer
from cprec.model.adapter_files import ADAPTER_CONFIG
from cprec.model.backbone import load_tokenizer
from cprec.model.base_uri import (
    TINY_BASE,
    is_unbuilt,
    locate_base,
    locate_named_base,
    read_base_template,
)
from cprec.model.context_length import require_context
from cprec.runs import checkpoint
from cprec.runs.record_files import read_json_object
from cprec.runs.run_records import recipe_run_uri
from cprec.stream.row_encoder import find_fallback_reason
from cprec.tracking.registry import Registry, Version
from cprec.tracking.version_names import VERSION_NAMES, find_version
from cprec.workflows.evaluation.prompted import describe_prompted_base, find_prompted_bases

MODEL_NAMES = f"{VERSION_NAMES}, base, or the URI of a checkpoint, an adapter or a merged model"
"""How a model may be named, for messages."""


def find_models(
    recipe: Recipe, registry: Registry, names: Sequence[str], corpus: Corpus | None = None
) -> list[EvaluatedModel]:
    """Finds the models that names stand for; a model with several seeds is found once per seed.

    Two names of one model find it once, by the first of them.

    A version has its base in its lineage, and a stored model the one that its adapter names, where
    that is at hand (`_find_named_base`). Any other model takes the base of the versions beside it,
    or without any the recipe's.

    Args:
        recipe: Base, seeds of baselines, and the run whose candidate and searches are meant.
        registry: Where versions are looked up.
        names: `base`, a baseline, a version as `find_version` takes it, a search of this run, or
            the URI of a stored model (`cprec.downstream.stored_model`).
        corpus: The tiny base depends on it; None: it is opened if that base is needed.

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
    run_uri = recipe_run_uri(recipe)
    versions = {
        name: version
        for name in dict.fromkeys(names)
        if name not in ("base", POPULARITY, *BASELINE_NAMES, *PROMPTED_BASES)
        and (version := find_version(registry, name, run_uri)) is not None
    }
    version_bases = {
        name: _base_of(version) for name, version in versions.items() if "base" in version.tags
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
        return _locate_recipe_base(recipe, corpus), recipe.model.revision

    @cache
    def template_of_base() -> str:
        """Returns the template of models that name none: that of the corpus."""
        return _read_template(recipe, corpus)

    models: list[EvaluatedModel] = []
    for name in dict.fromkeys(names):
        if name in ("base", *PROMPTED_BASES):
            base, revision = implied_base(name)
            named = read_base_template(base)
            template = template_of_base() if named is None else named.name
            model = EvaluatedModel(name, name, base, revision, prompt_template=template)
            models += find_prompted_bases(model, recipe, corpus)
        elif name == POPULARITY:
            models.append(EvaluatedModel(name, name, "", None))
        elif name in BASELINE_NAMES:
            place = implied_base(name) if name in TEXT_BASELINES else ("", None)
            models += [
                EvaluatedModel(name, f"{name}-seed{seed}", *place, seed=seed)
                for seed in recipe.seeds(recipe.baseline.seeds)
            ]
        elif version := versions.get(name):
            place = version_bases.get(name) or implied_base(name)
            models.append(_version_model(recipe, name, version, *place, template_of_base))
        elif seed_checkpoints := _find_tuned_checkpoints(recipe, name):
            models += [
                EvaluatedModel(
                    name,
                    f"{name}-{seed}",
                    *implied_base(name),
                    uri,
                    prompt_template=checkpoint.read_template(uri).name,
                )
                for seed, uri in seed_checkpoints
            ]
        else:
            uri = storage.absolute_uri(name)
            stored = StoredModel.at(uri)
            place = (
                (uri, None)
                if stored.form == Form.MERGED
                else _find_named_base(recipe, stored) or implied_base(name)
            )
            label = _stored_label(uri, models)
            template = _template_of(stored, template_of_base)
            models.append(EvaluatedModel(name, label, *place, uri, prompt_template=template))
    return unite_names(models)


def find_model(
    recipe: Recipe,
    registry: Registry,
    name: str,
    key: str = "--model",
    corpus: Corpus | None = None,
) -> EvaluatedModel:
    """Finds the one language model that a name stands for, and checks that it is whole.

    Args:
        recipe: As for `find_models`.
        registry: The registry of the recipe.
        name: The name, as `find_models` takes it.
        key: The key or flag that has the name, for messages.
        corpus: As for `find_models`.

    Raises:
        RecipeError: The name stands for a baseline, or for several models.
        RunError: There is no such model, it has no lineage, or it is damaged.
    """
    if name in (POPULARITY, *BASELINE_NAMES, *PROMPTED_BASES):
        raise RecipeError(f"{key} {name}: a baseline, which only jobs/evaluate.py ranks with")
    version = find_version(registry, name, recipe_run_uri(recipe)) if name != "base" else None
    if version is not None and "base" not in version.tags:
        raise RunError(f"{key} {name}: {version} does not say which base it stands on (tag base)")
    models = find_models(recipe, registry, [name], corpus)
    if len(models) > 1:
        checkpoints = ", ".join(str(model.checkpoint) for model in models)
        raise RecipeError(f"{key} {name}: several models; give one of {checkpoints}")
    model = models[0]
    if model.checkpoint is not None:
        if version is None and not storage.exists(model.checkpoint):
            raise RecipeError(f"{key} {name}: no such model; give {MODEL_NAMES}")
        StoredModel.at(model.checkpoint).verify()
    return model


def check_models(
    recipe: Recipe, models: Sequence[EvaluatedModel], corpus: Corpus, domain: str
) -> None:
    """Checks that models can be scored on a domain: whole checkpoints, known items, tokenizers.

    Raises:
        RunError: A checkpoint is damaged, or a hybrid model does not know the domain's items.
        RecipeError: A base has no tokenizer that can be used.
    """
    for model in models:
        if model.checkpoint is not None:
            StoredModel.at(model.checkpoint).verify()
            require_known_items(model.name, model.checkpoint, corpus, domain)
    encodings = {(model.base, model.revision, model.template) for model in models if model.base}
    for base, revision, template in sorted(encodings, key=str):
        check_tokenizer(recipe, corpus, base, revision, template)


def check_tokenizer(
    recipe: Recipe,
    corpus: Corpus,
    base: str,
    revision: str | None,
    template: PromptTemplate,
    hybrid_prompts: bool = False,
) -> str | None:
    """Checks that the tokenizer of a base encodes titles. Writes nothing.

    So the tokenizer of a base that has to be copied from an object store, or built, is not looked
    at before it is.

    Args:
        recipe: The recipe, whose storage has the tiny bases.
        corpus: The corpus that has the titles.
        base: Base model, as `locate_base` returns it.
        revision: Revision of a base model on the hub.
        template: Template of the prompts.
        hybrid_prompts: Whether prompts have behaviour tokens.

    Returns:
        Why prompts have to be tokenised one by one, if they have to (`find_fallback_reason`).

    Raises:
        RecipeError: The base has no tokenizer that can be used, or too short a context.
    """
    if is_unbuilt(recipe, base):
        return None
    if storage.is_remote(base):
        if not storage.exists(storage.join(base, "config.json")):
            raise RecipeError(f"model.base: no config.json below {base}")
        return None
    require_context(base, revision, recipe.model.max_tokens)
    if hybrid_prompts:
        text_tokenizer(load_tokenizer(base, revision)).require_fast()
    return find_fallback_reason(corpus, base, revision, template)


def describe_models(models: Sequence[EvaluatedModel]) -> Iterator[str]:
    """Yields one line per name: the version, the run and the checkpoint that it stands for."""
    for name in dict.fromkeys(model.name for model in models):
        seeds = [model for model in models if model.name == name]
        yield f"  {name}: {describe_model(seeds[0])}" + (
            f" (and {len(seeds) - 1} more seeds)" if len(seeds) > 1 else ""
        )
        if others := ", ".join(seeds[0].other_names):
            yield f"  {others}: the same model as {name}, compared once"


def describe_model(model: EvaluatedModel) -> str:
    """Returns what a model is, for people."""
    if model.name == POPULARITY:
        return "how often items were bought in the training split"
    if model.is_baseline:
        text = f", on vectors of titles by {model.base}" if model.reads_text else ""
        return f"a baseline, seed {model.seed}{text}"
    if model.checkpoint is None:
        return describe_prompted_base(model)
    version = ""
    if model.version is not None and model.run is not None:
        run = posixpath.basename(model.run)
        version = f"version {model.version} of {model.registered_model}, run {run}, "
    stored = StoredModel.at(model.checkpoint)
    if stored.form == Form.MERGED:
        return f"{version}merged model {model.checkpoint}"
    named, _ = stored.named_base or (model.base, None)
    differs = posixpath.basename(named) != posixpath.basename(model.base)
    return f"{version}{stored.form} {model.checkpoint} on {model.base}" + (
        f"; its {ADAPTER_CONFIG} names the base {named}" if differs else ""
    )


def _find_named_base(recipe: Recipe, stored: StoredModel) -> tuple[str, str | None] | None:
    """Returns base and revision that a stored model names, where that base is at hand.

    A directory may have moved, and a bare adapter may call its base by a word of its own. Then, and
    where the recipe's base has the same name, the recipe says where it is.
    """
    named = stored.named_base
    if named is None or posixpath.basename(named[0]) == posixpath.basename(recipe.model.base):
        return None
    base, revision = named
    is_there = storage.exists(storage.join(storage.absolute_uri(base), MODEL_CONFIG))
    return (locate_named_base(base), revision) if is_there else None


def describe_other_template(template: PromptTemplate, corpus: Corpus, start: str) -> str | None:
    """Says that prompts follow what training starts from, where the corpus has another template.

    Args:
        template: Template of the prompts.
        corpus: The corpus.
        start: What training starts from: a URI, or the base.
    """
    if template.text_name == corpus.prompt_template:
        return None
    return (
        f"prompts are in the template {template.text_name}, in which {start} was trained; the "
        f"corpus has {corpus.prompt_template} (data.prompt_template)"
    )


def _base_of(version: Version) -> tuple[str, str | None]:
    """Returns base and revision of a version, by its lineage."""
    return version.tags["base"], version.tags.get("base_revision") or None


def _version_model(
    recipe: Recipe,
    name: str,
    version: Version,
    base: str,
    revision: str | None,
    template_of_base: Callable[[], str],
) -> EvaluatedModel:
    """Returns a registered version as a model; of another registered model, its label says so."""
    label = f"version-{version.number}"
    return EvaluatedModel(
        name,
        label if version.model == recipe.mlflow.model else f"{version.model}-{label}",
        base,
        revision,
        version.checkpoint,
        version.number,
        registered_model=version.model,
        run=version.run,
        prompt_template=_template_of(StoredModel.at(version.checkpoint), template_of_base),
    )


def _find_tuned_checkpoints(recipe: Recipe, name: str) -> list[tuple[str, str]]:
    """Returns (label, checkpoint) of each seed of a search's best learning rate.

    Empty where this run has no finished search of this name on the domain.
    """
    if "/" in name:
        return []
    domain = recipe.evaluate.domain or next(iter(recipe.data.held_out), "")
    search = storage.join(recipe_run_uri(recipe), "finetune", domain, name, SEARCH_FILE)
    if not storage.exists(search):
        return []
    return [
        (f"seed{seed['seed']}", seed["checkpoint"])
        for seed in read_json_object(search)["winner"]["seeds"]
    ]


def _locate_recipe_base(recipe: Recipe, corpus: Corpus | None) -> str:
    """Returns where the recipe's base is; opens the corpus if the tiny base depends on it."""
    if corpus is None and recipe.model.base != TINY_BASE:
        return locate_named_base(recipe.model.base)
    return locate_base(recipe, corpus or Corpus.open(recipe.corpus, recipe.corpus_version))


def _template_of(stored: StoredModel, template_of_base: Callable[[], str]) -> str:
    """Returns the template that a stored model was trained in; of a base, that of the corpus."""
    template = stored.template
    return template_of_base() if template is None else template.name


def _read_template(recipe: Recipe, corpus: Corpus | None) -> str:
    """Returns the template of a corpus, or where there is none yet the one that it would have."""
    if corpus is None:
        with suppress(CorpusError):
            corpus = Corpus.open(recipe.corpus, recipe.corpus_version)
    if corpus is None:
        return recipe.data.prompt_template or DEFAULT_TEMPLATE
    return corpus.prompt_template


def _stored_label(uri: str, others: Sequence[EvaluatedModel]) -> str:
    """Returns `<run>-<checkpoint>`, or the name of another folder and of the one that it is in.

    It has a hash where another model is called the same.
    """
    parent = posixpath.dirname(uri)
    if StoredModel.at(uri).form == Form.CHECKPOINT:
        parent = posixpath.dirname(parent)
    label = f"{posixpath.basename(parent)}-{posixpath.basename(uri)}"
    if any(other.label == label and other.checkpoint != uri for other in others):
        label += f"-{storage.sha256(uri.encode())[:6]}"
    return label
