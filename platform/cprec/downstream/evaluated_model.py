"""A model that jobs rank, score or compare, as they name it: what it is, before it is loaded."""

from dataclasses import dataclass

from corpus.settings import DEFAULT_TEMPLATE, TemplateName
from cprec.baselines.popularity import POPULARITY
from cprec.baselines.training import BASELINE_NAMES
from cprec.encode.prompt import TEMPLATES, PromptTemplate


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to be evaluated: a language model, or a baseline.

    Attributes:
        name: Name of the model in `evaluate.models`.
        label: Unique label of the model; also the name of its evaluation folder.
        base: Base of a language model; empty for a baseline.
        revision: Revision of the base.
        checkpoint: URI of the checkpoint, or of another stored model
            (`cprec.downstream.stored_model`); None for the base itself, and for a baseline.
        version: Registered version, if the model is one.
        seed: Seed of a baseline's training.
        registered_model: Registered model that the version is of.
        run: Run (URI) that the version is from.
        prompt_template: Template of a language model's prompts: the one that it was trained in.
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
    prompt_template: TemplateName = DEFAULT_TEMPLATE

    @property
    def template(self) -> PromptTemplate:
        """The template of its prompts."""
        return TEMPLATES[self.prompt_template]

    @property
    def is_baseline(self) -> bool:
        """Whether the model is a baseline, which knows item ids only."""
        return self.name in (*BASELINE_NAMES, POPULARITY)
