"""The lineage of a pre-trained version: the tags that say where it comes from."""

import hashlib

from cprec.runs import checkpoint
from cprec.runs.run_plan import RunPlan
from cprec.tracking.registry import Registry
from cprec.train.distributed.driver import TrainingJob


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
        "recipe_digest": hashlib.sha256(recipe_yaml.encode()).hexdigest()[:16],
        "inexact": job.recipe.train.inexact_keys,
        "parent_checkpoint": parent,
        "parent_version": versions.get(parent, ""),
    }
