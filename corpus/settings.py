"""Settings of the corpus: where behaviours come from and how they become samples."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cluster.section import Section

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]


class DataSettings(Section):
    """`data`: raw behaviours and the rules that turn them into samples (paper Sec. 4.3, 5.1)."""

    root: str = Field("out/shoppers", description="data root: interactions/<Domain>.parquet and items/<Domain>.parquet (path or s3://)")
    format: Literal["root", "simulated"] = Field(
        "root", description="root: a data root as it stands; simulated: written by the seeded shopper simulation where it is missing"
    )
    domains: tuple[Name, ...] = Field((), description="domains to pre-train on, comma-separated")
    held_out: tuple[Name, ...] = Field((), description="domains kept out of pre-training, for fine-tuning and evaluation")
    max_quarantined: float = Field(
        0.05, ge=0.0, le=1.0, description="share of a domain's rows without a user, item, plausible time or title above which the build stops"
    )
    k_core: int = Field(3, ge=1, description="users and items with fewer interactions in a domain are dropped, to a fixed point")
    min_history: int = Field(3, ge=1, description="items before a target, at least; fewer make no sample")
    max_history: int = Field(10, ge=1, description="items before a target, at most; the most recent are kept")
    num_candidates: int = Field(20, ge=2, description="candidates per sample, the target included")
    mixed_min_domains: int = Field(2, ge=1, description="mixed samples: domains that the history spans, at least")
    mixed_min_target_domain: int = Field(1, ge=0, description="mixed samples: items of the target's own domain in the history, at least")
    distribute_above: int = Field(5_000_000, ge=0, description="interactions above which the build runs on Ray Data instead of one process")

    @model_validator(mode="after")
    def _consistent(self) -> "DataSettings":
        if self.max_history < self.min_history:
            raise ValueError(f"data.max_history ({self.max_history}) must be at least data.min_history ({self.min_history})")
        if both := set(self.domains) & set(self.held_out):
            raise ValueError(f"{sorted(both)} in both data.domains and data.held_out; a domain is one or the other")
        return self


class SimulateSettings(Section):
    """`simulate`: the shoppers of the embedded default (used when data.format is simulated)."""

    users: int = Field(1500, ge=10, description="shoppers")
    items_per_domain: int = Field(400, ge=30, le=100_000, description="items in each domain")
    domains_per_user: int = Field(3, ge=1, description="domains in which a shopper buys, on average")
    interactions_per_domain: int = Field(12, ge=5, description="purchases of a shopper in one of their domains, on average")
    drift: float = Field(0.02, ge=0.0, le=1.0, description="chance, per purchase, that one of the shopper's favourites is drawn anew")
