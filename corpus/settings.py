"""Settings of the corpus: where behaviours come from and how they become samples."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cluster.section import Section

SafeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]


class ColumnSettings(Section):
    """`data.columns`: what the columns of the files are called, where the format does not say it."""

    user_id: str | None = Field(None, description="column of users' ids")
    item_id: str | None = Field(None, description="column of items' ids, in interactions and items")
    timestamp: str | None = Field(None, description="column of times")
    rating: str | None = Field(
        None, description="column of ratings; read if data.min_rating is set"
    )
    title: str | None = Field(None, description="column of titles")


class DataSettings(Section):
    """`data`: raw behaviours and the rules that turn them into samples (paper Sec. 4.3, 5.1)."""

    root: str = Field(
        "out/shoppers", description="data root: the folder with the behaviours (path or s3://)"
    )
    format: Literal["root", "simulated", "amazon2014", "amazon2018", "amazon2023", "movielens"] = (
        Field(
            "root",
            description="root: interactions/<Domain> and items/<Domain> as .parquet, .csv or .csv.gz; simulated: the same, written by the seeded "
            "simulation where it is missing; "
            "amazon...: reviews and meta of that release, JSON lines, plain or .gz; movielens: ratings and movies, .dat or .csv",
        )
    )
    columns: ColumnSettings = ColumnSettings()
    time_unit: Literal["s", "ms", "us", "ns"] | None = Field(
        None,
        description="unit of integer times since 1970; default: the format's (s; amazon2023: ms)",
    )
    latest: int | None = Field(
        None, ge=1, description="unix seconds after which a time is no use; default: a day from now"
    )
    min_rating: float | None = Field(
        None,
        description="interactions with a lower rating, or none, are left out; default: ratings are not read",
    )
    max_per_user: int = Field(
        10_000,
        ge=5,
        description="interactions of a user in a domain, at most; the most recent are kept",
    )
    domains: tuple[SafeName, ...] = Field(
        (), description="domains to pre-train on, comma-separated"
    )
    held_out: tuple[SafeName, ...] = Field(
        (), description="domains kept out of pre-training, for fine-tuning and evaluation"
    )
    max_quarantined: float = Field(
        0.05,
        ge=0.0,
        le=1.0,
        description="share of a domain's rows without a user, item, plausible time or title above which the build stops",
    )
    k_core: int = Field(
        3,
        ge=1,
        description="users and items with fewer interactions in a domain are dropped, to a fixed point",
    )
    min_history: int = Field(
        3, ge=1, description="items before a target, at least; fewer make no sample"
    )
    max_history: int = Field(
        10, ge=1, description="items before a target, at most; the most recent are kept"
    )
    num_candidates: int = Field(20, ge=2, description="candidates per sample, the target included")
    mixed_min_domains: int = Field(
        2, ge=1, description="mixed samples: domains that the history spans, at least"
    )
    mixed_min_target_domain: int = Field(
        1,
        ge=0,
        description="mixed samples: items of the target's own domain in the history, at least",
    )
    users_together: bool = Field(
        False,
        description="order the samples of a source by user, for train.targets_per_pass; false: as if drawn at random, which trains better",
    )
    distribute_above: int = Field(
        30_000_000,
        ge=0,
        description="interactions above which a build or an append runs on Ray instead of in one process",
    )

    @model_validator(mode="after")
    def _check_consistency(self) -> "DataSettings":
        if self.max_history < self.min_history:
            raise ValueError(
                f"data.max_history ({self.max_history}) must be at least data.min_history ({self.min_history})"
            )
        if both := set(self.domains) & set(self.held_out):
            raise ValueError(
                f"{sorted(both)} in both data.domains and data.held_out; a domain is one or the other"
            )
        return self


class SimulateSettings(Section):
    """`simulate`: the shoppers of the embedded default (used when data.format is simulated)."""

    users: int = Field(1500, ge=10, description="shoppers")
    items_per_domain: int = Field(400, ge=30, le=100_000, description="items in each domain")
    domains_per_user: int = Field(
        3, ge=1, description="domains in which a shopper buys, on average"
    )
    interactions_per_domain: int = Field(
        12, ge=5, description="purchases of a shopper in one of their domains, on average"
    )
    drift: float = Field(
        0.02,
        ge=0.0,
        le=1.0,
        description="chance, per purchase, that one of the shopper's favourites is drawn anew",
    )
