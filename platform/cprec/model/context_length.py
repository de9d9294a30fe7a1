"""How many tokens a base was made for, and the refusal of samples that are longer.

A learned position beyond the last is an index error, on a GPU in the middle of a kernel. A rotary
one is computed without a word, and the model has never seen it.
"""

from pathlib import Path
from typing import Any

from cluster.errors import RecipeError
from cprec.model.base_files import ensure_local, require_hub
from cprec.model.libraries import refused_input

CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
"""Names of the longest context in configurations, the usual one first."""
SCALED_TYPES = ("linear", "yarn")
"""Kinds of rotary scaling whose factor is not part of the context that a configuration names."""
LENGTH_DEPENDENT_TYPES = ("dynamic", "longrope")
"""Kinds of rotary scaling that rotate every token of a pass otherwise as soon as one of its rows is
longer than the original context. Then a sample's loss and scores depend on its neighbours."""
ORIGINAL_FIELD = "original_max_position_embeddings"


def context_length(config: Any) -> tuple[int, str] | None:
    """Returns the context of a base in tokens, and the field that holds it.

    None for a base whose configuration names none, as those without positions do (Mamba, BLOOM).

    Args:
        config: Configuration of the base.
    """
    config = config.get_text_config()
    for field in CONTEXT_FIELDS:
        length = getattr(config, field, None)
        if isinstance(length, int) and length > 0:
            return _scale(config, length, field)
    return None


def _scale(config: Any, length: int, field: str) -> tuple[int, str]:
    """Returns the context that rotary scaling makes of a length, and the field that holds it."""
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(scaling, dict):
        return length, field
    scaled = length
    for part in (scaling, *(part for part in scaling.values() if isinstance(part, dict))):
        kind = part.get("rope_type", part.get("type"))
        original = part.get(ORIGINAL_FIELD) or getattr(config, ORIGINAL_FIELD, None)
        if kind in LENGTH_DEPENDENT_TYPES:
            name = f"{ORIGINAL_FIELD}, with {kind} rotary scaling" if original else field
            return min(length, int(original or length)), name
        if kind in SCALED_TYPES and part.get("factor"):
            scaled = max(scaled, int(int(original or length) * float(part["factor"])))
    return scaled, field


def require_context(base: str, revision: str | None, max_tokens: int) -> None:
    """Checks that the longest sample fits into the context of a base; loads its configuration only.

    Args:
        base: Hub id, directory or `s3://` URI.
        revision: Revision of a hub id.
        max_tokens: Tokens of the longest sample.

    Raises:
        RecipeError: It does not, or the base has no configuration that loads.
    """
    # Imported late: transformers takes a second to import, and dry runs do without.
    from transformers import AutoConfig

    local = ensure_local(base, revision, with_weights=False)
    if not Path(local.path).is_dir():
        require_hub(base, revision)
    with refused_input(f"model.base: {base} holds no configuration that loads"):
        config = AutoConfig.from_pretrained(
            local.path, revision=local.hub_revision, trust_remote_code=False
        )
    limit = context_length(config)
    if limit is not None and max_tokens > limit[0]:
        raise RecipeError(
            f"model.max_tokens: {max_tokens} is above the context of {base}, {limit[0]} tokens "
            f"({limit[1]} of its config.json); set model.max_tokens {limit[0]} or less"
        )
