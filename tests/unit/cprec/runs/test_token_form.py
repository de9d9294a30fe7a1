"""A run that began under earlier rules goes on only where its tokens are the same."""

import pytest
from transformers import PreTrainedTokenizerFast

from cluster.errors import RunError
from cprec.encode.prompt import TABLE1
from cprec.model.tiny import train_tokenizer
from cprec.runs.token_form import TOKEN_FORM, require_same_tokens
from tests.tokenizers import byte_level

TITLES = ["Blue lamp", "Red mug"]


def test_a_run_with_the_same_tokens_goes_on() -> None:
    tiny: PreTrainedTokenizerFast = train_tokenizer(TITLES, 300, TABLE1)
    require_same_tokens("r", 1, TITLES, tiny)
    require_same_tokens("r", 1, [], tiny)
    require_same_tokens("r", TOKEN_FORM, ["</s>"], byte_level(TITLES))


def test_another_prefix_is_refused() -> None:
    with pytest.raises(RunError, match=r"began with <s> .* puts nothing there"):
        require_same_tokens("r", 1, TITLES, byte_level(TITLES))


def test_a_title_that_was_a_control_token_is_refused() -> None:
    tiny = train_tokenizer(TITLES, 300, TABLE1)
    with pytest.raises(RunError, match="where the title 'a </s> b' spells one"):
        require_same_tokens("r", 1, [*TITLES, "a </s> b"], tiny)
