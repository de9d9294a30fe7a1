"""Exports an adapter merged into its base as one plain model directory.

Servers that take no adapters can load it. A hybrid model's directory also has a folder behaviour/:
the projector and the item vectors, the items that they are of, and how prompts use them.
"""

import tempfile
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from peft import PeftModel

from cluster.errors import RunError
from cluster.storage import exists, upload
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.downstream import hybrid
from cprec.downstream.domain import Domain
from cprec.downstream.hybrid import HybridModel
from cprec.downstream.known_items import (
    BEHAVIOUR_FOLDER,
    KNOWN_ITEMS_FILE,
    is_hybrid,
    read_known_items,
    require_known_items,
)
from cprec.downstream.scoring import EvaluatedModel, load_model
from cprec.model.libraries import refused_input

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


def require_free(uri: str) -> None:
    """Raises RunError if there is something at a place already."""
    if exists(uri):
        raise RunError(f"{uri}: there is something already; give another place")


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


def export_model(recipe: Recipe, model: EvaluatedModel, uri: str) -> None:
    """Writes a model and its tokenizer in the format of Hugging Face, config.json last.

    Args:
        recipe: Precision in which the model is loaded; the corpus, for a hybrid model.
        model: The model to export.
        uri: Directory or object store, where nothing may be yet.

    Raises:
        RunError: There is something at `uri`, or the items of a hybrid model are not in the corpus.
    """
    require_free(uri)
    items = require_items(recipe, model)
    network, tokenizer = load_model(recipe, model)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        if isinstance(network, HybridModel) and items is not None:
            _write_behaviour(network, model, *items, directory / BEHAVIOUR_FOLDER)
            network = network.model
        with refused_input(f"{model.name}: it cannot be merged into its base", RunError):
            merged = network.merge_and_unload() if isinstance(network, PeftModel) else network
            merged.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
        upload(directory, uri, last="config.json")


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
