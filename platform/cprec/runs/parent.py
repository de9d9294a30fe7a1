"""What a run goes on from: a stable checkpoint of a trunk, or an adapter, checked against it."""

import json
import posixpath
from dataclasses import dataclass
from typing import Any

from cluster.errors import CorpusError, RunError
from cluster.storage import exists, join, read_text
from corpus.settings import TemplateName
from corpus.store.tables import Corpus
from cprec.config.sections.model import ModelSettings
from cprec.model.adapter import ADAPTER_WEIGHTS
from cprec.runs import checkpoint
from cprec.runs.run_plan import RunPlan
from cprec.runs.token_form import TOKEN_FORM
from cprec.schedule.plan import Portion


@dataclass(frozen=True)
class Parent:
    """What a run goes on from: a stable checkpoint of a trunk, a bare adapter, or the base.

    Attributes:
        uri: URI of the checkpoint or the adapter; None for the base.
        consumed: What the trunk had consumed there.
        passed_over: Domains that the run passes over.
        weights_only: Whether it is a bare adapter: it has weights, and neither plan nor optimizer.
        template: Template of the prompts that it was trained on; of the base, that of the corpus.
        token_form: Rules of tokens under which its weights were trained.
    """

    uri: str | None
    consumed: tuple[Portion, ...]
    passed_over: tuple[str, ...]
    template: TemplateName
    token_form: int = TOKEN_FORM
    weights_only: bool = False


def read_parent(uri: str, corpus: Corpus, seed: int) -> Parent:
    """Reads a parent checkpoint, and checks that it is stable and fits a new run.

    Args:
        uri: URI of the checkpoint.
        corpus: The corpus of the new run.
        seed: Its seed.

    Raises:
        RunError: The checkpoint is damaged, was taken while annealing, or has another seed.
        CorpusError: It was trained on another corpus.
    """
    ledger = checkpoint.read_verified_ledger(uri)
    consumed = ledger.plan.consumed_portions(ledger.samples)
    stable_end = ledger.plan.wsa.stable_end
    if ledger.samples > stable_end:
        raise RunError(
            f"{uri}: taken while annealing ({ledger.samples:,} samples, S = {stable_end:,}); "
            "only stable checkpoints can be continued"
        )
    trunk = RunPlan.read(uri.rsplit("/", 2)[0])  # <run>/checkpoints/<name>
    if trunk is not None and trunk.corpus != corpus.fingerprint:
        raise CorpusError(
            f"{uri} was trained on corpus {trunk.corpus}; {corpus.uri} is {corpus.fingerprint}"
        )
    trained_seed = ledger.plan.domain_eras[0].seed
    if seed != trained_seed:
        raise RunError(
            f"{uri} was trained with seed {trained_seed}, which ordered its samples; "
            f"this recipe has seed {seed}: set --seed {trained_seed}"
        )
    template = checkpoint.read_template(uri).name
    if trunk is None:
        return Parent(uri, consumed, (), template)
    return Parent(uri, consumed, trunk.passed_over, template, trunk.token_form)


def require_matching_adapter(model: ModelSettings, base: str, parent: str) -> None:
    """Checks that a run trains the kind of adapter that its parent checkpoint holds.

    Weights of another scale, or for another base of the same shape, would load without an error
    and mean something else.

    Args:
        model: The recipe's section `model`.
        base: Base model that workers load.
        parent: URI of the parent checkpoint.

    Raises:
        RunError: Something differs; lists keys and values.
    """
    if checkpoint.is_bare_adapter(parent) and not exists(join(parent, ADAPTER_WEIGHTS)):
        raise RunError(f"{parent}: no {ADAPTER_WEIGHTS}, so there are no weights to begin with")
    config_uri = join(checkpoint.adapter_uri(parent), checkpoint.ADAPTER_CONFIG)
    parent_has_lora = exists(config_uri)
    recipe_values: dict[str, Any] = {"model.adapter": model.adapter}
    parent_values: dict[str, Any] = {"model.adapter": "lora" if parent_has_lora else "full"}
    if parent_has_lora and model.adapter == "lora":
        recipe_values |= {
            "model.lora_rank": model.lora_rank,
            "model.lora_alpha": model.lora_alpha,
            "model.base": base,
            "model.revision": model.revision,
        }
        config = json.loads(read_text(config_uri))
        parent_base = config.get("base_model_name_or_path")
        is_moved = posixpath.basename(base) == posixpath.basename(str(parent_base))
        # A bare adapter may call its base by a word of its own, or not at all.
        is_word = checkpoint.is_bare_adapter(parent) and "/" not in str(parent_base)
        if is_moved or is_word:
            parent_base = base
        parent_values |= {
            "model.lora_rank": config.get("r"),
            "model.lora_alpha": config.get("lora_alpha"),
            "model.base": parent_base,
            "model.revision": config.get("revision"),
        }
    differences = [
        f"  {key}: {parent_values[key]!r} in the checkpoint, {value!r} in this recipe"
        for key, value in recipe_values.items()
        if value != parent_values[key]
    ]
    if differences:
        raise RunError(
            f"{parent} was trained with other settings:\n"
            + "\n".join(differences)
            + "\nset the checkpoint's values, or start from the base"
        )
