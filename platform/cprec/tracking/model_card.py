"""The model card of a model: what it is, what it was trained on, how well it ranks, how it loads.

It is made of the lineage tags of a registered version. It names no path and no address: a base that
is not on a hub is called by the name of its folder, the corpus by its fingerprint.
"""

import json
import posixpath
from collections.abc import Iterator, Mapping
from importlib.resources import files

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from corpus.sampling.source import Source
from cprec.downstream.known_items import is_hybrid
from cprec.downstream.stored_model import CARD_TAG, Form, StoredModel
from cprec.encode.prompt import UNRECORDED, find_template
from cprec.evaluation.metrics import HR_CUTOFFS, NDCG_CUTOFFS
from cprec.evaluation.significance import wilson_interval
from cprec.tracking.lineage import HUB_ID, LICENSE_TAG, TEMPLATE_TAG, trained_on
from cprec.tracking.registry import EVALUATION_TAG, TRAINED_ON_TAG, Registry

NOT_RECORDED = "not recorded"
MAX_DESCRIPTION = 5000
"""Characters of a version's description that MLflow's SQL store takes."""
CUT_NOTICE = "\n\nCut here: the whole card is in every export (jobs/merge.py)."


def render_card(
    name: str, form: Form, tags: Mapping[str, str], hybrid: bool, is_trained: bool = True
) -> ModelCard:
    """Renders the model card of a model.

    Args:
        name: What the card calls the model.
        form: How the model is stored where the card stands.
        tags: Its lineage and evaluations, as a registered version has them.
        hybrid: Whether its prompts have behaviour tokens.
        is_trained: Whether it was trained on prompts of some template. The card of a base has no
            tag of this project, by which a model directory is told from a base.

    Returns:
        The card: `content` is the file, and `text` is it without the metadata for hubs.
    """
    environment = Environment(
        autoescape=False,  # noqa: S701 (it is Markdown)
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = files("cprec.tracking").joinpath("model_card.md.j2").read_text()
    template_of_prompts = find_template(tags.get(TEMPLATE_TAG) or UNRECORDED.name)
    is_adapter = form == Form.ADAPTER
    base = tags.get("base", "")
    on_hub = HUB_ID.fullmatch(base) is not None
    metadata = ModelCardData(
        license=tags.get(LICENSE_TAG) or None,
        base_model=base if on_hub else None,
        base_model_relation="adapter" if is_adapter else "finetune",
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["recommendation", *([CARD_TAG] if is_trained else [])],
    )
    content = environment.from_string(template).render(
        metadata=metadata.to_yaml(),
        name=name,
        form={Form.MERGED: "merged", Form.ADAPTER: "adapter"}.get(form, "part"),
        hybrid=hybrid,
        fine_tuned=tags.get("domain", "") if tags.get("kind") == "finetuned" else "",
        base=base if on_hub else f"{posixpath.basename(base.rstrip('/'))}, not on a hub",
        revision=tags.get("base_revision") or NOT_RECORDED,
        license=tags.get(LICENSE_TAG) or f"{NOT_RECORDED}: see the card of the base",
        corpus=tags.get("corpus_fingerprint") or NOT_RECORDED,
        sources=list(_iter_sources(tags)),
        is_base=tags.get(TRAINED_ON_TAG) == trained_on(),
        cutoffs=[*(f"HR@{k}" for k in HR_CUTOFFS), *(f"NDCG@{k}" for k in NDCG_CUTOFFS)],
        evaluations=list(_iter_evaluations(tags)),
        soft_tokens=template_of_prompts.soft_tokens,
        prompt=template_of_prompts.render(["TITLE", "TITLE"], ["CANDIDATE", "CANDIDATE"]),
    )
    return ModelCard(content)


def publish_card(registry: Registry, number: int) -> ModelCard:
    """Makes the present card of a version its description in MLflow.

    Args:
        registry: The registry of the version's model.
        number: Number of the version.

    Returns:
        The card, as it is for the version's adapter.
    """
    version = registry.version(number)
    stored = StoredModel.at(version.checkpoint)
    form = StoredModel.at(stored.adapter_uri or stored.uri).form
    card = render_card(version.title, form, version.tags, is_hybrid(version.checkpoint))
    description = _shorten(card.text.strip())
    registry.set_description(number, description)
    return card


def _iter_sources(tags: Mapping[str, str]) -> Iterator[list[str]]:
    """Yields the rows of the table of training data."""
    for text, trained in sorted(json.loads(tags.get(TRAINED_ON_TAG) or "{}").items()):
        source = Source.parse(text)
        first, last = trained["versions"]
        versions = str(first) if first == last else f"{first} to {last}"
        yield [source.kind, source.name or "all of them", versions, f"{trained['samples']:,}"]


def _iter_evaluations(tags: Mapping[str, str]) -> Iterator[list[str]]:
    """Yields the rows of the table of evaluations, one for each domain."""
    for tag, value in sorted(tags.items()):
        if not tag.startswith(EVALUATION_TAG):
            continue
        metrics = json.loads(value)
        # Releases before cards kept the metrics alone.
        chance = metrics.get("chance")
        yield [
            tag.removeprefix(EVALUATION_TAG),
            metrics.get("split", NOT_RECORDED),
            str(metrics.get("corpus_version", NOT_RECORDED)),
            f"{metrics['n']:,}",
            *(_with_interval(metrics["hr"].get(str(k)), metrics["n"]) for k in HR_CUTOFFS),
            *(_with_interval(metrics["ndcg"].get(str(k)), metrics["n"]) for k in NDCG_CUTOFFS),
            NOT_RECORDED if chance is None else f"{chance:.3g}",
        ]


def _with_interval(mean: float | None, n: int) -> str:
    """Returns HR@k or NDCG@k with its interval as text."""
    if mean is None or not n:
        return "none"
    low, high = wilson_interval(mean, n)
    return f"{mean:.4f} ({low:.4f} to {high:.4f})"


def _shorten(text: str) -> str:
    """Returns a text that MLflow takes, whole lines of it."""
    if len(text) <= MAX_DESCRIPTION:
        return text
    kept = text[: MAX_DESCRIPTION - len(CUT_NOTICE)].rpartition("\n")[0]
    return kept + CUT_NOTICE
