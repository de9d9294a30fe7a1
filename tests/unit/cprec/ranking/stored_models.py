"""A corpus, a base and the models on it, text-only and hybrid, of random weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from corpus.build import build
from corpus.store.tables import Corpus
from cprec.config.recipe import Recipe
from cprec.config.sections.finetuning import FinetuneSettings
from cprec.config.sections.model import ModelSettings
from cprec.downstream import hybrid
from cprec.downstream.domain import Domain
from cprec.downstream.evaluated_model import EvaluatedModel
from cprec.downstream.hybrid import HybridModel
from cprec.downstream.known_items import KNOWN_ITEMS_FILE, KnownItems
from cprec.downstream.llara import build_plan
from cprec.downstream.stored_model import BEHAVIOUR_FOLDER
from cprec.encode.prompt import TABLE1
from cprec.model import adapter, tiny
from cprec.runs import checkpoint
from cprec.schedule.ledger import Ledger
from tests.models import llama
from tests.unit.corpus.worlds import settings, shop, write_root

MAX_TOKENS = 512
DOMAINS = ("A", "B")
WORDS = ("oak", "steel", "red", "small", "lamp", "mug", "old", "chair")
LORA = ModelSettings(lora_dropout=0.0)


@dataclass(frozen=True)
class Place:
    """Where the models are.

    Attributes:
        folder: Folder of everything.
        corpus: Corpus of the domains A and B.
        recipe: Recipe whose base and corpus these are.
        text: Checkpoint of a text-only model.
        hybrid: Checkpoint of a hybrid model, which knows the items of A.
    """

    folder: Path
    corpus: Corpus
    recipe: Recipe
    text: str
    hybrid: str

    def model(self, uri: str | None) -> EvaluatedModel:
        return EvaluatedModel("given", "given", str(self.folder / "base"), None, uri)


def write(folder: Path, users: int, items: int = 40) -> Place:
    """Writes a corpus of some users, and models.

    Args:
        folder: Where they go.
        users: Users of each domain.
        items: Items of each domain.
    """
    names = [f"{domain}{item:02d}" for domain in DOMAINS for item in range(items)]
    titles = {
        name: f"{WORDS[i % 8]} {WORDS[i // 8 % 8]} {WORDS[i * 3 % 5]} {i // 16}"
        for i, name in enumerate(names)
    }
    root = write_root(folder / "root", shop(DOMAINS, users, items), titles)
    data = settings(root, domains=DOMAINS, held_out=(), num_candidates=20)
    corpus = build(data, 0, str(folder / "corpus"), print)
    tokenizer: PreTrainedTokenizerFast = tiny.train_tokenizer(corpus.read_titles(), 400, TABLE1)
    network = llama(len(tokenizer), spread=3.0, hidden_size=16, num_hidden_layers=1)
    network.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    recipe = Recipe.model_validate(
        {
            "corpus": corpus.uri,
            "storage": str(folder / "runs"),
            "model": {"base": str(folder / "base"), "max_tokens": MAX_TOKENS},
            "data": data.model_dump(),
            "recommend": {"domain": "A"},
        }
    )
    return Place(
        folder,
        corpus,
        recipe,
        write_checkpoint(folder, corpus, "text"),
        write_checkpoint(folder, corpus, "hybrid", "A"),
    )


def write_checkpoint(
    folder: Path,
    corpus: Corpus,
    name: str,
    domain_name: str | None = None,
    model: ModelSettings = LORA,
) -> str:
    """Writes a checkpoint whose trained part changes much; a hybrid model if a domain is given."""
    base: Any = AutoModelForCausalLM.from_pretrained(folder / "base")
    network: Any = adapter.attach(base, model, 0)
    torch.manual_seed(len(name))
    weights = adapter.trainable_parameters(network)
    for parameter_name, parameter in weights.items():
        if "lora_A" not in parameter_name:
            parameter.data += torch.empty_like(parameter).normal_(std=0.1)
    local = folder / "local" / name
    template = TABLE1.with_soft_tokens(model.soft_tokens) if model.adapter == "prompt" else TABLE1
    adapter.save(network, weights, local / checkpoint.ADAPTER, str(folder / "base"), None, template)
    source = corpus.find_domain_source("A", "train")
    if domain_name is not None:
        domain = Domain.from_corpus(corpus, domain_name)
        wrapped = HybridModel(network, torch.randn(len(domain.item_indices), 4), 0)
        behaviour = local / BEHAVIOUR_FOLDER
        hybrid.save(wrapped, dict(wrapped.named_parameters()), behaviour)
        known = KnownItems.of_domain(corpus, domain)
        (behaviour / KNOWN_ITEMS_FILE).write_text(known.to_text())
    plan = build_plan(source, corpus.version, 10, 1e-3, FinetuneSettings(), 0)
    uri = str(folder / "runs" / name / "checkpoints" / "00000010-a")
    checkpoint.commit(local, uri, Ledger(plan))
    return uri
