"""The base class of all settings."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base class of the recipe and its sections: immutable, with a closed set of keys.

    Types are strict: neither "1" nor true is accepted for 1. NaN and infinity are refused.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )
