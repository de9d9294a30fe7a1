"""The rules by which text becomes tokens, and what to do with a run that began under earlier ones.

docs/decisions/016-text-and-tokens.md tells what they are and what changed.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from cluster.errors import RunError
from cprec.encode.text_tokenizer import text_tokenizer

TOKEN_FORM = 2
"""Number of the rules in force. Under form 1 the begin token stood before every prompt, whether the
tokenizer puts it there or not, and text could become control tokens."""


def require_same_tokens(
    run: str, token_form: int, titles: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Checks that what a run trains now has the tokens that it had when the run began.

    Args:
        run: Name of the run.
        token_form: Form under which it began.
        titles: Titles of its corpus.
        tokenizer: Tokenizer of its base.

    Raises:
        RunError: Prompts began with other tokens, or a title had other ones.
    """
    if token_form == TOKEN_FORM:
        return
    advice = "finish the run with the release that began it (0.2.0), or start another --run"
    encoder = text_tokenizer(tokenizer)
    before = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if before != encoder.prefix_ids:
        raise RunError(
            f"the run {run} began with {_names(tokenizer, before)} before every prompt, and this "
            f"release puts {_names(tokenizer, encoder.prefix_ids)} there, as the base's tokenizer "
            f"does: {advice}"
        )
    tokens_before = tokenizer(list(titles), add_special_tokens=False)["input_ids"] if titles else []
    for title, old, new in zip(titles, tokens_before, encoder.encode_all(titles), strict=True):
        if list(old) != new:
            raise RunError(
                f"the run {run} began with a control token where the title {title!r} spells one, "
                f"and this release reads it as text: {advice}"
            )


def _names(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Returns the tokens of some ids as one text."""
    return "".join(map(str, tokenizer.convert_ids_to_tokens(list(ids)))) or "nothing"
