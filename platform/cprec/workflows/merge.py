"""Exports a model: merged into its base as one plain model directory, or its adapter as it is.

Both have a model card, and either may be pushed to a hub. Servers that take no adapters can load
the first. That of a hybrid model also has a folder behaviour/: the projector and the item vectors,
the items that they are of, and how prompts use them.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from peft import PeftModel

from cluster.errors import RecipeError, RunError
from cluster.storage import absolute_uri, download, exists, join, upload
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.downstream import hybrid
from cprec.downstream.domain import Domain
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.downstream.hybrid import HybridModel
from cprec.downstream.known_items import (
    KNOWN_ITEMS_FILE,
    is_hybrid,
    read_known_items,
    require_known_items,
)
from cprec.downstream.scoring import load_model
from cprec.downstream.stored_model import BEHAVIOUR_FOLDER, MODEL_CONFIG, Form, StoredModel
from cprec.encode.prompt import PROMPT_FILE
from cprec.model.adapter_files import ADAPTER_CONFIG
from cprec.model.base_uri import read_base_template
from cprec.model.libraries import refused_input
from cprec.tracking import hub
from cprec.tracking.lineage import (
    CARD_FILE,
    LICENSE_TAG,
    stored_lineage,
)
from cprec.tracking.model_card import render_card
from cprec.tracking.registry import Registry

ITEMS_FILE = "items.parquet"
"""File of a merged hybrid model that says which item each vector is of."""
BEHAVIOUR_README = """# Behaviour tokens of {name}

This is a hybrid model (LLaRA, arXiv 2312.02445): in its prompts, each title of the history and of
the candidates is directly followed by one behaviour token, which stands for the item.

The model directory above is a plain causal language model. A behaviour token is no token of its
vocabulary: its embedding is computed from `behaviour.safetensors`, and given to the model as a row
of `inputs_embeds`:

    vector = items[number]                                      # [{size}]
    embedding = gelu(vector @ 0.weight.T + 0.bias) @ 2.weight.T + 2.bias    # [{hidden}]

`{items_file}` says which number an item of {domain} has (columns number, item_id, title). Other
items have no vector. In token ids, this project writes a behaviour token as {vocabulary} + number.
Answers are titles, without behaviour tokens.

Without behaviour tokens the model still answers, but worse than it could.
"""


@dataclass(frozen=True)
class ExportPlan:
    """An export whose inputs are checked.

    Attributes:
        recipe: Precision in which the model is loaded.
        model: The model.
        form: What is written: a merged model, or the adapter.
        items: Corpus and domain of the items that a hybrid model knows; None of a text-only model.
        card: Model card, the content of README.md.
        out: Where the directory goes; None: only to the hub.
        repository: Repository of a hub to which it is pushed; None: it is not.
    """

    recipe: Recipe
    model: EvaluatedModel
    form: Form
    items: tuple[Corpus, str] | None
    card: str
    out: str | None
    repository: str | None

    def describe(self) -> str:
        """Returns what the export writes, and where, for people."""
        what = (
            f"{self.model.label} merged into {self.model.base}"
            if self.form == Form.MERGED
            else f"adapter of {self.model.label}"
        )
        return f"{what}: {', '.join(place for place in (self.out, self.repository) if place)}"


def plan_export(
    recipe: Recipe,
    registry: Registry,
    model: EvaluatedModel,
    out: str | None,
    repository: str | None = None,
    form: Form = Form.MERGED,
) -> ExportPlan:
    """Checks what an export needs, and renders its model card. Writes nothing.

    Args:
        recipe: The recipe; the corpus, for a hybrid model.
        registry: Where the lineage of a registered version is.
        model: The model to export.
        out: Directory or URI, where nothing may be yet; None: only to the hub.
        repository: Repository of a hub to push to; None: it is not pushed.
        form: `Form.MERGED`, or `Form.ADAPTER` for the adapter as it is.

    Raises:
        RecipeError: There is neither a place nor a repository, or no adapter to export.
        RunError: There is something at the place, the items of a hybrid model are not in the
            corpus, or the hub cannot be pushed to.
    """
    if out is None and repository is None:
        raise RecipeError("--out: give a place for the export, or a repository with --push")
    out = None if out is None else absolute_uri(out)
    if out is not None and exists(out):
        raise RunError(f"{out}: there is something already; give another place")
    if form == Form.ADAPTER:
        _require_adapter(model)
    elif model.template.soft_tokens:
        raise RecipeError(
            f"{model.name}: it is a soft prompt of {model.template.soft_tokens} embeddings, which "
            "no weights of its base can hold; export it with --adapter"
        )
    items = require_items(recipe, model)
    if repository is not None:
        hub.require_hub(repository)
    lineage = _read_lineage(recipe, registry, model)
    card = render_card(_title(model), form, lineage, items is not None, _is_trained(model))
    return ExportPlan(recipe, model, form, items, card.content, out, repository)


def _require_adapter(model: EvaluatedModel) -> None:
    """Raises RecipeError unless a model is one text-only PEFT adapter on its base."""
    stored = None if model.checkpoint is None else StoredModel.at(model.checkpoint)
    adapter_uri = None if stored is None else stored.adapter_uri
    if adapter_uri is None or not exists(join(adapter_uri, ADAPTER_CONFIG)):
        raise RecipeError(f"--adapter: {model.name} has no PEFT adapter; export it merged")
    if is_hybrid(model.checkpoint):
        raise RecipeError(
            f"--adapter: {model.name} is a hybrid model, which its adapter is only a part of; "
            "export it merged"
        )


def _is_trained(model: EvaluatedModel) -> bool:
    """Returns whether a model was trained on prompts of some template: it is no base."""
    if model.checkpoint is None:
        return read_base_template(model.base) is not None
    return StoredModel.at(model.checkpoint).template is not None


def _title(model: EvaluatedModel) -> str:
    """Returns what the card calls a model."""
    if model.version is None:
        return model.label
    return f"{model.registered_model} version {model.version}"


def _read_lineage(recipe: Recipe, registry: Registry, model: EvaluatedModel) -> Mapping[str, str]:
    """Returns the tags of a registered version, and what is known of any other model."""
    known = stored_lineage(recipe, registry, model)
    if model.version is None or model.registered_model is None:
        return known
    tags = registry.with_model(model.registered_model).version(model.version).tags
    # A license that was found, or given, since it was registered counts.
    return {**known, **tags, LICENSE_TAG: known[LICENSE_TAG] or tags.get(LICENSE_TAG, "")}


def require_items(recipe: Recipe, model: EvaluatedModel) -> tuple[Corpus, str] | None:
    """Finds the items whose vectors a hybrid model has.

    Returns:
        The corpus, at the version that has them, and their domain; None of a text-only model.

    Raises:
        CorpusError: There is no such corpus, or no such domain in it.
        RunError: It is another one.
    """
    if model.checkpoint is None or not is_hybrid(model.checkpoint):
        return None
    known = read_known_items(model.checkpoint)
    corpus = Corpus.open(recipe.corpus, known.corpus_version)
    corpus.find_domain_source(known.domain, "train")
    require_known_items(model.name, model.checkpoint, corpus, known.domain)
    return corpus, known.domain


def export(plan: ExportPlan) -> None:
    """Writes what a plan says, config.json or adapter_config.json last, and pushes it.

    Raises:
        RunError: The model cannot be merged, or the hub refuses it.
    """
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        if plan.form == Form.MERGED:
            _write_merged(plan, directory)
        else:
            download(str(StoredModel.at(str(plan.model.checkpoint)).adapter_uri), directory)
        (directory / CARD_FILE).write_text(plan.card)
        # Pushed first: after a push that failed, the same command can be given again.
        if plan.repository is not None:
            hub.push(directory, plan.repository)
        if plan.out is not None:
            last = MODEL_CONFIG if plan.form == Form.MERGED else ADAPTER_CONFIG
            upload(directory, plan.out, last)


def _write_merged(plan: ExportPlan, directory: Path) -> None:
    """Writes a model and its tokenizer in the format of Hugging Face."""
    model = plan.model
    network, tokenizer = load_model(plan.recipe, model)
    if isinstance(network, HybridModel) and plan.items is not None:
        _write_behaviour(network, model, *plan.items, directory / BEHAVIOUR_FOLDER)
        network = network.model
    with refused_input(f"{model.name}: it cannot be merged into its base", RunError):
        merged = network.merge_and_unload() if isinstance(network, PeftModel) else network
        merged.save_pretrained(directory)
        if _is_trained(model):
            (directory / PROMPT_FILE).write_text(model.template.to_json())
        tokenizer.save_pretrained(directory)


def _write_behaviour(
    network: HybridModel, model: EvaluatedModel, corpus: Corpus, name: str, directory: Path
) -> None:
    """Writes what a hybrid model has beside the language model, and how it is used."""
    hybrid.save(network, dict(network.named_parameters()), directory)
    (directory / KNOWN_ITEMS_FILE).write_text(read_known_items(str(model.checkpoint)).to_text())
    domain = Domain.from_corpus(corpus, name)
    rows = corpus.read_items().take(pa.array(domain.item_indices))
    numbers = pa.array(range(len(rows)), pa.int64())
    table = pa.table({"number": numbers, "item_id": rows["item_id"], "title": rows["title"]})
    pq.write_table(table, directory / ITEMS_FILE, write_page_checksum=True)
    hidden, size = cast(torch.nn.Linear, network.projector[0]).weight.shape
    (directory / "README.md").write_text(
        BEHAVIOUR_README.format(
            name=model.label,
            size=size,
            hidden=hidden,
            items_file=ITEMS_FILE,
            domain=name,
            vocabulary=network.vocab_size,
        )
    )
