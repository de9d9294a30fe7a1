"""Evaluation: which models on what, candidates of a catalogue, the gate to champion."""

from typing import Literal

from pydantic import Field, model_validator

from cluster.section import Section
from corpus.settings import Day, SafeName


class EvaluateSettings(Section):
    """`evaluate`: which models are compared, on what."""

    domain: SafeName | None = Field(
        None, description="domain whose samples are scored; default: the first of data.held_out"
    )
    split: Literal["validation", "test"] = Field("test", description="split that is scored")
    models: tuple[str, ...] = Field(
        ("base", "candidate"),
        description="models to compare: base, a baseline (sasrec, gru4rec, cl4srec, tedrec, morec, "
        "popularity), candidate (the newest version of this run), champion, a version number, "
        "models:/NAME/3, a search of this run (llara, cprec), or the URI of a checkpoint, an "
        "adapter or a merged model; the first is the reference",
    )
    mode: Literal["score", "generate", "constrained"] = Field(
        "score",
        description="score: all candidates in one pass; generate: greedy text; "
        "constrained: greedy text that can only name candidates",
    )
    candidates: Literal["sampled", "catalogue"] = Field(
        "sampled",
        description="sampled: the candidates of the samples; catalogue: all items of the domain, "
        "of which a language model ranks those that are retrieved (section retrieval); "
        "needs mode: score; the two are never compared with each other",
    )
    retrieve_k: int = Field(
        20,
        ge=2,
        description="with candidates: catalogue, retrieved items that a language model ranks; "
        "best as many as data.num_candidates, which it has learned to choose from",
    )
    from_day: Day | None = Field(
        None,
        description="a split by time: score only what was bought on this day (UTC, such as "
        "2026-11-27) or later, with models that were trained on what was before it; others are "
        "refused",
    )
    to_day: Day | None = Field(
        None, description="with from_day, the last day that is scored; default: the newest"
    )
    max_users: int | None = Field(
        None, ge=1, description="largest number of users, in the order of their sample ids"
    )
    batch: int = Field(
        16,
        ge=1,
        description="samples scored in one forward pass, at most; long ones are fewer, as a pass "
        "has 32,768 tokens at most",
    )
    compile: bool = Field(
        False,
        description="torch.compile the layers to score (GPU): takes some seconds, and is worth "
        "them from some ten thousand samples",
    )
    text: str | None = Field(
        None,
        description="a plain text file (path or s3://) that has nothing to do with interactions; "
        "its perplexity shows what a model forgot; "
        "measured before pre-training, at its checkpoints, and with each evaluation",
    )
    alpha: float = Field(0.05, gt=0, lt=1, description="significance level of the paired test")

    @model_validator(mode="after")
    def _check_candidates(self) -> "EvaluateSettings":
        if self.candidates == "catalogue" and self.mode != "score":
            raise ValueError(
                "evaluate.candidates: catalogue needs evaluate.mode: score; "
                f"{self.mode} answers name one of a few candidates"
            )
        return self

    @model_validator(mode="after")
    def _check_days(self) -> "EvaluateSettings":
        if self.to_day and not (self.from_day and self.from_day <= self.to_day):
            raise ValueError(
                f"evaluate.to_day {self.to_day} needs evaluate.from_day, that day or one before "
                f"it, not {self.from_day}"
            )
        if self.from_day and self.candidates == "catalogue":
            raise ValueError(
                "evaluate.from_day needs evaluate.candidates: sampled; retrieval counts and "
                "learns what was bought in later days, too"
            )
        return self

    @property
    def days(self) -> str:
        """The days that are scored, in words; empty where all are."""
        if self.from_day is None or self.to_day == self.from_day:
            return self.from_day or ""
        return f"{self.from_day} to {self.to_day}" if self.to_day else f"{self.from_day} on"

    @property
    def form(self) -> str:
        """How models are evaluated: the mode, or catalogue; results of two forms stay apart."""
        return self.mode if self.candidates == "sampled" else self.candidates


class RetrievalSettings(Section):
    """`retrieval`: which items of a catalogue a model is given to rank."""

    sources: tuple[Literal["titles", "sasrec", "popularity"], ...] = Field(
        ("titles", "sasrec", "sasrec"),
        description="whose rankings are fused to candidates: titles (vectors of titles by "
        "retrieval.model), sasrec (where it is trained, and knows the items), popularity; "
        "one that is named twice counts twice; the most popular items fill up what they leave",
    )
    model: str = Field(
        "base",
        description="language model whose mean hidden states are the vectors of titles: base, or "
        "a version or checkpoint as in evaluate.models",
    )
    decay: float = Field(
        0.7,
        gt=0,
        le=1,
        description="weight of an item of the history in the query, as a fraction of that of the "
        "item bought after it",
    )
    exclude_history: bool = Field(
        True, description="items of the history come after all others, in every ranking"
    )


class GateSettings(Section):
    """`gate`: what a version must reach before it becomes the champion."""

    min_samples: int = Field(
        100, ge=1, description="smallest number of samples from which a version is judged"
    )
    above_chance: bool = Field(
        True,
        description="refuse a version whose HR@1 is not above that of a random choice among the "
        "candidates, by the lower end of its one-sided interval (Wilson) at 1 - gate.alpha",
    )
    min_hr1: float = Field(0.0, ge=0, le=1, description="lowest HR@1")
    alpha: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="significance level of the tests against chance and against the champion; "
        "a version that is worse than the champion at this level is refused",
    )
    max_slice_drop: float | None = Field(
        None,
        ge=0,
        le=1,
        description="largest drop of HR@1 against the champion in a slice "
        "(sparse, medium, dense histories); null: any",
    )
    min_valid_ratio: float = Field(
        0.0,
        ge=0,
        le=1,
        description="lowest exact Valid Ratio of generated answers; 0: none are generated",
    )
    max_forgetting: float | None = Field(
        None,
        ge=0,
        description="largest relative increase of the perplexity of evaluate.text over the base "
        "model's; null: any, and it is not measured",
    )
