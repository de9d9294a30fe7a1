"""The base of every settings class: frozen, strict, no unknown key, no NaN."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of the recipe. Numbers are strict (no "1", no true for 1), keys are closed, values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )
