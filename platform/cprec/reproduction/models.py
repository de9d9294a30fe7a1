"""The models that the paper compares, and which of them each table and figure shows. Pure.

To add a baseline, give it a label below. To add another model or a table, add it to `artefacts`:
the steps that it needs follow from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from cprec.baselines.popularity import POPULARITY
from cprec.downstream.evaluated_model import CHATREC, LLARA_UNTUNED
from cprec.evaluation.metrics import HISTORY_SLICES, HR_CUTOFFS, NDCG_CUTOFFS
from cprec.schedule.wsa import Mode


@dataclass(frozen=True)
class Pretraining:
    """A way to pre-train.

    Attributes:
        name: Its name in steps.
        mode: The schedule.
        share: Fraction of the recipe's domain-specific samples; mixed samples are cut alike.
        one_domain: Whether only the first of `data.domains` is pre-trained on.
    """

    name: str
    mode: Mode
    share: float = 1.0
    one_domain: bool = False


@dataclass(frozen=True)
class Model:
    """A model that is scored on the held-out domains.

    Attributes:
        name: Its name in steps and files.
        label: How tables call it.
        pretraining: What its adapter is pre-trained with; None: it is not.
        tuned: Whether it is fine-tuned on the domain.
        paper: How the paper calls it; empty where the paper does not have it.
        is_baseline: Whether it is a small recommender of its own (`cprec.baselines`).
        writes_rankings: Whether all its scores are of answers in words.
    """

    name: str
    label: str
    pretraining: Pretraining | None = None
    tuned: bool = False
    paper: str = ""
    is_baseline: bool = False
    writes_rankings: bool = False


WSA = Pretraining("wsa", Mode.WSA)
ONE_DOMAIN = Pretraining("one-domain", Mode.DOMAIN_ONLY, one_domain=True)

BASELINE_LABELS = {
    POPULARITY: "Popularity",
    "gru4rec": "GRU4Rec",
    "sasrec": "SASRec",
    "cl4srec": "CL4SRec",
    "tedrec": "TedRec",
    "morec": "MoRec",
}
BASELINES = tuple(
    Model(
        name,
        label,
        paper="" if name == POPULARITY else label,
        is_baseline=True,
    )
    for name, label in BASELINE_LABELS.items()
)
SASREC = next(model for model in BASELINES if model.name == "sasrec")
BASE = Model("base", "Base, as it is", paper="LLaMA-2")
CHAT_REC = Model(CHATREC, "ChatRec", paper="ChatRec", writes_rankings=True)
UNTUNED = Model(LLARA_UNTUNED, "LLaRA without fine-tuning", paper="LLaRA w/o SFT")
LLARA = Model("llara", "LLaRA", tuned=True, paper="LLaRA")
PRETRAINED = Model("pretrained", "CPRec without fine-tuning", WSA, paper="CPT-LLaRA")
CPREC = Model("cprec", "CPRec", WSA, tuned=True, paper="CPRec")
DOMAIN_SPECIFIC = Model(
    "llara-ds", "LLaRA + DS", Pretraining("domain-only", Mode.DOMAIN_ONLY), tuned=True
)
SHUFFLED = Model(
    "llara-mix-n", "LLaRA + DS + Mix (N)", Pretraining("shuffled", Mode.SHUFFLED), tuned=True
)
NO_DECAY = Model(
    "llara-mix-s", "LLaRA + DS + Mix (S)", Pretraining("no-decay", Mode.NO_DECAY), tuned=True
)
CROSS_DOMAIN_ZERO_SHOT = Model(
    "cd-llara-zero-shot", "CD-LLaRA without fine-tuning", ONE_DOMAIN, paper="CD-LLaRA w/o SFT"
)
CROSS_DOMAIN = Model("cd-llara", "CD-LLaRA", ONE_DOMAIN, tuned=True, paper="CD-LLaRA")


def scaled(share: float) -> Model:
    """Returns CPRec, pre-trained on a fraction of the samples."""
    return Model(
        f"cprec-{share:g}",
        f"CPRec, {share:.0%} of the samples",
        Pretraining(f"wsa-{share:g}", Mode.WSA, share),
        tuned=True,
    )


class Content(StrEnum):
    """What a table or figure shows."""

    STATISTICS = "statistics"
    SCORES = "scores"
    COST = "cost"


@dataclass(frozen=True)
class Measure:
    """A column of scores.

    Attributes:
        name: Its name, as in the paper.
        k: The k of HR@k or NDCG@k.
        is_ndcg: NDCG@k instead of HR@k.
        users: Slice of the users by length of their history; None: all.
        is_valid_ratio: Fraction of generated answers that name exactly one candidate (LLaRA's rule)
            instead; baselines generate none.
    """

    name: str
    k: int = 1
    is_ndcg: bool = False
    users: str | None = None
    is_valid_ratio: bool = False


HR1 = Measure("HR@1")
VALID_RATIO = Measure("Valid Ratio", is_valid_ratio=True)


@dataclass(frozen=True)
class Artefact:
    """A table or a figure of the paper.

    Attributes:
        name: Its name: `table3`, `figure4`.
        title: What it shows.
        content: Statistics of the corpus, scores of models, or cost.
        models: Its rows.
        measures: Its columns of scores.
        reference: Model that the others are tested against.
        absent: Rows of the paper that are not computed here.
        order: Rows that are each above the next one in the paper.
    """

    name: str
    title: str
    content: Content = Content.SCORES
    models: tuple[Model, ...] = ()
    measures: tuple[Measure, ...] = (HR1,)
    reference: Model | None = CPREC
    absent: tuple[str, ...] = ()
    order: tuple[Model, ...] = ()

    @property
    def is_figure(self) -> bool:
        """Whether it is drawn, beside its table."""
        return self.name.startswith("figure")


def artefacts(shares: Sequence[float]) -> tuple[Artefact, ...]:
    """Returns all tables and figures, in the order in which their steps are computed.

    Args:
        shares: Fractions of the samples of pre-training, below 1, that Figure 5 shows.
    """
    cutoffs = [Measure(f"HR@{k}", k) for k in HR_CUTOFFS]
    gains = [Measure(f"NDCG@{k}", k, is_ndcg=True) for k in NDCG_CUTOFFS]
    return (
        Artefact("table2", "Statistics of the data", Content.STATISTICS, reference=None),
        Artefact(
            "table3",
            "Comparison on the held-out domains",
            models=(*BASELINES, BASE, CHAT_REC, LLARA, PRETRAINED, CPREC),
            measures=(HR1, VALID_RATIO),
            order=(CPREC, LLARA, SASREC),
        ),
        Artefact(
            "figure4",
            "Which data, and which schedule",
            models=(LLARA, DOMAIN_SPECIFIC, SHUFFLED, NO_DECAY, CPREC),
            order=(CPREC, DOMAIN_SPECIFIC),
        ),
        Artefact(
            "table4",
            "Without fine-tuning",
            models=(SASREC, BASE, UNTUNED, PRETRAINED),
            reference=PRETRAINED,
        ),
        Artefact(
            "table5",
            "Users by the length of their history",
            models=(LLARA, CPREC),
            measures=(
                *(Measure(name.capitalize(), users=name) for name in HISTORY_SLICES),
                Measure("All"),
            ),
        ),
        Artefact(
            "table6",
            "Other measures",
            models=(SASREC, BASE, CHAT_REC, LLARA, CPREC),
            measures=(*cutoffs, *gains, VALID_RATIO),
        ),
        Artefact(
            "table7",
            "Cost of one epoch",
            Content.COST,
            models=(LLARA, CPREC),
            reference=None,
        ),
        Artefact(
            "figure5",
            "How much pre-training",
            models=(LLARA, *(scaled(share) for share in sorted(shares)), CPREC),
        ),
        Artefact(
            "figure2",
            "Pre-training on one other domain",
            models=(SASREC, UNTUNED, CROSS_DOMAIN_ZERO_SHOT, CROSS_DOMAIN, LLARA),
            reference=LLARA,
        ),
    )
