"""The prompt of every domain (paper Table 1): titles only, always the word "item".

It has two templates, which differ in what stands around the lists of titles. A corpus keeps the
name of one, and so does whatever is trained on it: a model is scored in the template that it was
trained in (docs/decisions/030-prompt-templates.md).

The prompt of another objective than the next item has the same beginning and one sentence of its
own after the history (docs/decisions/044-objectives.md).

A soft prompt is a number of tokens before the text that are no words: their embeddings are trained
(docs/decisions/041-soft-prompts-and-parts.md). The template says how many, also in its name.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.errors import RunError
from corpus.sampling.prompt_text import BETWEEN, HEAD, SEPARATOR, TAIL
from corpus.settings import UNRECORDED_TEMPLATE
from cprec.schedule.objectives import Objective

PROMPT_FILE = "prompt.json"
"""File beside trained weights that names the template of their prompts."""
SOFT_TOKEN_START = 1 << 30
"""Id of the first token of a soft prompt: beyond every vocabulary, and all behaviour tokens."""

MASK = "[masked]"
"""What stands in a prompt in the place of a title that it hides."""
INSTRUCTIONS: Mapping[Objective, str] = {
    Objective.MASKED_ITEM: (
        f"in the previous, where {MASK} hides an item. Please name the hidden item. The answer is"
    ),
    Objective.REPLACED_ITEM: (
        "in the previous, but one item of the list was put in the place of another. Please name "
        "the item that does not belong. The answer is"
    ),
    Objective.NEXT_HISTORY: (
        "in the previous. Please list the next items this user will buy, in their order. The "
        "answer is"
    ),
}
"""Text after the history, up to the answer, of each objective that has no candidates."""


@dataclass(frozen=True)
class PromptTemplate:
    """A template of prompts: the text around the titles.

    Attributes:
        name: Name of the template, such as table1, or table1+20 with a soft prompt of 20 tokens.
        opening: Text directly before the first title of a list.
        history_closing: Text directly after the last title of the history.
        candidates_closing: Text directly after the last candidate.
        empty_history: Text in place of a history without titles.
        soft_tokens: Tokens of the soft prompt before the text; 0: it has none.
    """

    name: str
    opening: str
    history_closing: str
    candidates_closing: str
    empty_history: str
    soft_tokens: int = 0

    @property
    def text_name(self) -> str:
        """Name of the template of the text alone."""
        return self.name.partition("+")[0]

    @property
    def soft_ids(self) -> list[int]:
        """Token ids of the soft prompt."""
        return list(range(SOFT_TOKEN_START, SOFT_TOKEN_START + self.soft_tokens))

    def with_soft_tokens(self, count: int) -> "PromptTemplate":
        """Returns this template with a soft prompt of a number of tokens."""
        return replace(self, name=f"{self.text_name}+{count}", soft_tokens=count)

    @property
    def fixed_texts(self) -> tuple[str, str, str]:
        """The texts before the history, between the lists, and after the candidates."""
        return (
            f"{HEAD} {self.opening}",
            f"{self.history_closing} {BETWEEN} {self.opening}",
            f"{self.candidates_closing} {TAIL}",
        )

    def render(self, history: Sequence[str], candidates: Sequence[str]) -> str:
        """Renders the prompt of a sample, up to the answer and without a trailing space.

        Args:
            history: Titles of the user's earlier items, oldest first.
            candidates: Titles to choose from, in the order stored in the sample.
        """
        choice = f"{self.opening}{SEPARATOR.join(candidates)}{self.candidates_closing}"
        return " ".join([HEAD, self._render_history(history), BETWEEN, choice, TAIL])

    def render_task(self, objective: Objective, history: Sequence[str]) -> str:
        """Renders the prompt of an objective without candidates, without a trailing space.

        Args:
            objective: One of INSTRUCTIONS.
            history: The titles to show, oldest first; MASK for a hidden one.
        """
        return " ".join([HEAD, self._render_history(history), INSTRUCTIONS[objective]])

    def title_ends(self, history: Sequence[str], candidates: Sequence[str]) -> list[int]:
        """Returns where each title ends, in characters of the prompt and in its order."""
        start = f"{HEAD} {self.opening}"
        between = f"{HEAD} {self._render_history(history)} {BETWEEN} {self.opening}"
        return [*_list_ends(len(start), history), *_list_ends(len(between), candidates)]

    def _render_history(self, titles: Sequence[str]) -> str:
        if not titles:
            return self.empty_history
        return f"{self.opening}{SEPARATOR.join(titles)}{self.history_closing}"

    def to_json(self) -> str:
        """Returns the content of prompt.json."""
        return json.dumps({"template": self.name})


TABLE1 = PromptTemplate("table1", "", "", ".", "nothing")
BRACES = PromptTemplate("braces", "{", "}", "}.", "{}")
TEMPLATES: Mapping[str, PromptTemplate] = {template.name: template for template in (TABLE1, BRACES)}
UNRECORDED = TEMPLATES[UNRECORDED_TEMPLATE]
"""Template of weights without the file: earlier releases had no other."""


def find_template(name: str) -> PromptTemplate:
    """Returns the template of a name.

    Raises:
        ValueError: There is none of that name.
    """
    text_name, plus, count = name.partition("+")
    template = TEMPLATES.get(text_name)
    if template is not None and plus and count.isdecimal():
        template = template.with_soft_tokens(int(count))
    if template is None or template.name != name:
        raise ValueError(f"{name!r} is no prompt template")
    return template


def _list_ends(start: int, titles: Sequence[str]) -> list[int]:
    """Returns where each title of a list ends that begins at a position of a text."""
    ends = []
    for title in titles:
        ends.append(start + len(title))
        start += len(title) + len(SEPARATOR)
    return ends


def parse_template(text: str | None, origin: str) -> PromptTemplate:
    """Returns the template that prompt.json names.

    Args:
        text: Content of the file; None: there is none.
        origin: Where the file is, for the message.

    Raises:
        RunError: It names a template that this release does not have.
    """
    if text is None:
        return UNRECORDED
    try:
        return find_template(json.loads(text)["template"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RunError(
            f"{origin}: names none of the prompt templates {', '.join(TEMPLATES)}; the weights "
            "beside it were trained with another release, or the file is damaged"
        ) from None
