"""A model that jobs rank, score or compare, as they name it: what it is, before it is loaded."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from corpus.settings import DEFAULT_TEMPLATE
from cprec.baselines.popularity import POPULARITY
from cprec.baselines.training import BASELINE_NAMES, TEXT_BASELINES
from cprec.encode.prompt import PromptTemplate, find_template

CHATREC = "chatrec"
"""Name of the base when it is asked for a ranking in words (`cprec.evaluation.listwise`)."""
LLARA_UNTUNED = "llara-untuned"
"""Name of the base with behaviour tokens through a projector that nothing has trained."""
PROMPTED_BASES = (CHATREC, LLARA_UNTUNED)
"""Models that are the base, prompted otherwise; only an evaluation knows them."""


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to be evaluated: a language model, or a baseline.

    Attributes:
        name: Name of the model in `evaluate.models`.
        label: Unique label of the model; also the name of its evaluation folder.
        base: Base of a language model, or of one whose vectors of titles a baseline reads; empty
            for a baseline that reads no text.
        revision: Revision of the base.
        checkpoint: URI of the checkpoint, or of another stored model
            (`cprec.downstream.stored_model`); None for the base itself, and for a baseline.
        version: Registered version, if the model is one.
        seed: Seed of a baseline's training, or of an untrained projector.
        registered_model: Registered model that the version is of.
        run: Run (URI) that the version is from.
        prompt_template: Template of a language model's prompts: the one that it was trained in.
        behaviour_weights: URI of the SASRec weights whose item embeddings become behaviour tokens
            through an untrained projector; None for any other model.
        other_names: Names that were given for the same model after `name`.
    """

    name: str
    label: str
    base: str
    revision: str | None
    checkpoint: str | None = None
    version: int | None = None
    seed: int = 0
    registered_model: str | None = None
    run: str | None = None
    prompt_template: str = DEFAULT_TEMPLATE
    behaviour_weights: str | None = None
    other_names: tuple[str, ...] = ()

    @property
    def template(self) -> PromptTemplate:
        """The template of its prompts."""
        return find_template(self.prompt_template)

    @property
    def is_baseline(self) -> bool:
        """Whether the model is a baseline, which no language model ranks for."""
        return self.name in (*BASELINE_NAMES, POPULARITY)

    @property
    def uses_baseline(self) -> bool:
        """Whether the model is, or has items of, a baseline that is trained on the domain."""
        return self.is_baseline or self.behaviour_weights is not None

    @property
    def writes_rankings(self) -> bool:
        """Whether the model answers in words, whatever the mode of the evaluation."""
        return self.name == CHATREC

    @property
    def reads_text(self) -> bool:
        """Whether the model is a baseline that reads the vectors of titles."""
        return self.name in TEXT_BASELINES


def unite_names(models: Iterable[EvaluatedModel]) -> list[EvaluatedModel]:
    """Returns each model once, by the first of its names; what has one label is one model."""
    united: dict[str, EvaluatedModel] = {}
    for model in models:
        known = united.setdefault(model.label, model)
        if known is not model:
            names = (*known.other_names, model.name)
            united[model.label] = replace(known, other_names=names)
    return list(united.values())
