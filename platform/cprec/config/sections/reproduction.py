"""Section `reproduce` of the recipe: what the paper's tables and figures need besides."""

from typing import Annotated

from pydantic import Field, field_validator

from cluster.section import Section

Share = Annotated[float, Field(gt=0, lt=1)]
"""A fraction that is neither nothing nor all."""


class ReproduceSettings(Section):
    """`reproduce`: what jobs/reproduce.py shows beside what the other sections say."""

    shares: tuple[Share, ...] = Field(
        (0.1, 0.2, 0.5),
        description="fractions of the samples of pre-training, besides none and all, from which "
        "the domain is fine-tuned (paper Fig. 5)",
    )
    generated_users: int = Field(
        200,
        ge=1,
        description="users, in the order of their sample ids, whose answers are generated for the "
        "Valid Ratio; all others are only scored",
    )

    @field_validator("shares")
    @classmethod
    def _check_shares(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(shares)) < len(shares):
            raise ValueError(f"reproduce.shares: each once, not {shares}")
        return shares
