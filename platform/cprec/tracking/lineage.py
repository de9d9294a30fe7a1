"""The lineage of a version: the tags that say where it comes from."""

import hashlib
import json
import re
from typing import Any

from huggingface_hub import ModelCard, hf_hub_download

from cluster.storage import join, read_text, read_text_if_exists
from corpus.sampling.source import Source
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.downstream.stored_model import Form, StoredModel
from cprec.model.adapter_config import is_bare_adapter
from cprec.runs import checkpoint
from cprec.runs.run_plan import RunPlan
from cprec.tracking.registry import PARENT_CHECKPOINT_TAG, TRAINED_ON_TAG, Registry
from cprec.train.distributed.driver import TrainingJob

LICENSE_TAG = "license"
"""Tag of a version: license of its base; empty where nobody said."""
TEMPLATE_TAG = "prompt_template"
"""Tag of a version: template of its prompts; versions of earlier releases have none."""
CARD_FILE = "README.md"
"""File of a model card, by the convention of hubs."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""A model on a hub: OWNER/NAME."""


def find_version_below(registry: Registry, folder: str) -> int | None:
    """Returns the number of a version whose checkpoint is, or was, below a folder.

    A checkpoint is registered by its URI, so another one at its place would be taken for it.

    Returns:
        The number; None if there is no such version, or MLflow is away: no training depends on it.
    """
    try:
        versions = registry.versions()
    except Exception:  # whatever MLflow raises
        return None
    prefix = join(folder, "")
    return next((v.number for v in versions if v.checkpoint.startswith(prefix)), None)


def trained_on(*checkpoints: str) -> str:
    """Returns what the stages of a training consumed, as JSON: samples and versions by source.

    Args:
        checkpoints: Last checkpoint (URI) of each stage, such as pre-training and fine-tuning.
    """
    sources: dict[str, dict[str, Any]] = {}
    for uri in checkpoints:
        ledger = checkpoint.read_ledger(uri)
        for portion in ledger.plan.consumed_portions(ledger.samples):
            entry = sources.setdefault(
                portion.source, {"samples": 0, "versions": [portion.version, portion.version]}
            )
            first, last = entry["versions"]
            entry["samples"] += portion.count
            entry["versions"] = [min(first, portion.version), max(last, portion.version)]
    return json.dumps(sources)


def read_trained_on(registry: Registry, model: EvaluatedModel) -> str | None:
    """Returns what a language model was trained on, as `trained_on` does; None if unknown.

    Args:
        registry: Where the lineage of a registered version is.
        model: The model; the base was trained on nothing.
    """
    if model.checkpoint is None:
        return trained_on()
    if model.version is not None and model.registered_model is not None:
        tags = registry.with_model(model.registered_model).version(model.version).tags
        if TRAINED_ON_TAG in tags:
            return tags[TRAINED_ON_TAG] or None
    is_checkpoint = StoredModel.at(model.checkpoint).form == Form.CHECKPOINT
    return trained_on(model.checkpoint) if is_checkpoint else None


def read_newest_versions(
    registry: Registry, model: EvaluatedModel, corpus: Corpus
) -> dict[Source, int] | None:
    """Returns the newest version of a corpus that a model was trained on, by source.

    Args:
        registry: Where the lineage of a registered version is.
        model: The model; the base was trained on nothing.
        corpus: The corpus.

    Returns:
        The versions; None if they are unknown, or of another corpus.
    """
    text = read_trained_on(registry, model)
    if text is None or _read_corpus(registry, model) not in (None, corpus.fingerprint):
        return None
    return {Source.parse(key): value["versions"][1] for key, value in json.loads(text).items()}


def _read_corpus(registry: Registry, model: EvaluatedModel) -> str | None:
    """Returns the fingerprint of the corpus that a model was trained on; None if unknown."""
    if model.version is not None and model.registered_model is not None:
        version = registry.with_model(model.registered_model).version(model.version)
        return version.tags.get("corpus_fingerprint")
    if model.checkpoint is None or StoredModel.at(model.checkpoint).form != Form.CHECKPOINT:
        return None
    plan = RunPlan.read(model.checkpoint.rsplit("/", 2)[0])
    return plan.corpus if plan else None


def find_license(recipe: Recipe, base: str, revision: str | None) -> str:
    """Returns the license of a base: that of the recipe, else that of the card beside the base.

    Args:
        recipe: The recipe, whose `model.license` counts first.
        base: Hub id, directory or URI.
        revision: Revision of a hub id.

    Returns:
        Its name; empty where nobody says.
    """
    if recipe.model.license:
        return recipe.model.license
    try:
        if HUB_ID.fullmatch(base):
            text = read_text(hf_hub_download(base, CARD_FILE, revision=revision))
        else:
            text = read_text_if_exists(join(base, CARD_FILE)) or ""
        if not text.startswith("---"):  # no metadata, of which the client would print a warning
            return ""
        return str(ModelCard(text).data.get("license", ""))
    except Exception:  # a hub that is away, or whatever stands in a card, must not end a training
        return ""


def stored_lineage(recipe: Recipe, registry: Registry, model: EvaluatedModel) -> dict[str, str]:
    """Returns what a model tells of where it comes from, as tags; what is unknown is empty.

    Args:
        recipe: The recipe, whose license counts first.
        registry: Where the lineage of a registered version is.
        model: The language model.
    """
    return {
        "base": model.base,
        "base_revision": model.revision or "",
        "corpus_fingerprint": _read_corpus(registry, model) or "",
        TEMPLATE_TAG: model.template.name,
        LICENSE_TAG: find_license(recipe, model.base, model.revision),
        TRAINED_ON_TAG: read_trained_on(registry, model) or "",
    }


def lineage(
    job: TrainingJob, run_plan: RunPlan, recipe_yaml: str, checkpoint_uri: str, registry: Registry
) -> dict[str, str]:
    """Returns where a version comes from, as tags.

    Args:
        job: What was trained.
        run_plan: The plan of the run.
        recipe_yaml: The resolved recipe of the run.
        checkpoint_uri: The checkpoint that becomes the version.
        registry: Where the version of the parent checkpoint is looked up.
    """
    license_name = find_license(job.recipe, job.base, job.revision)
    parent = run_plan.parent or ""
    versions = {v.checkpoint: str(v.number) for v in registry.versions()} if parent else {}
    return {
        "run": job.run_uri,
        "corpus": job.corpus.uri,
        "corpus_version": str(run_plan.version),
        "corpus_fingerprint": run_plan.corpus,
        "ledger_digest": checkpoint.read_ledger(checkpoint_uri).fingerprint(),
        "base": job.base,
        "base_revision": job.revision or "",
        LICENSE_TAG: license_name,
        # What a bare adapter had been trained on is unknown.
        TRAINED_ON_TAG: "" if parent and is_bare_adapter(parent) else trained_on(checkpoint_uri),
        TEMPLATE_TAG: job.template.name,
        "recipe_digest": hashlib.sha256(recipe_yaml.encode()).hexdigest()[:16],
        "inexact": job.recipe.train.inexact_keys,
        PARENT_CHECKPOINT_TAG: parent,
        "parent_version": versions.get(parent, ""),
    }
