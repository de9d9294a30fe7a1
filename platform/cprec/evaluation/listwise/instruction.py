"""An instruction that asks for a ranking in words, and the strict reading of the answer. Pure.

ChatRec (Gao et al., arXiv 2303.14524) and LLMRank (Hou et al., arXiv 2305.08845) rank so: nothing
is trained, and the candidates stand in the prompt. The sentences are our own.
"""

import re
from collections.abc import Sequence

LISTED = 5
"""Titles that the instruction asks for: HR@5 needs no more."""
FORM = 1
"""Number of the instruction and of its reading; raised with every change of either."""
CUE = "Answer:\n1."
"""What follows the instruction where a base has no chat template: the beginning of the answer."""
_LINE = re.compile(r"\s*(\d+)[.)]\s+(\S.*?)\s*")


def render_instruction(history: Sequence[str], candidates: Sequence[str]) -> str:
    """Renders the instruction of a sample.

    Args:
        history: Titles of the user's earlier items, oldest first.
        candidates: Titles to choose from.
    """
    bought = "\n".join(f"{number}. {title}" for number, title in enumerate(history, 1))
    choices = "\n".join(f"- {title}" for title in candidates)
    return (
        f"A user of a shop has bought these items, the oldest first:\n{bought or 'none yet'}\n\n"
        f"These items are on offer:\n{choices}\n\n"
        f"Rank the {LISTED} offers that this user is most likely to buy next, the likeliest first. "
        f"Answer with a numbered list of {LISTED} titles, each copied exactly from the offers, "
        "one a line, and with nothing else."
    )


def read_ranking(answer: str) -> list[str]:
    """Reads the titles of a numbered list.

    Args:
        answer: An answer to the instruction.

    Returns:
        The titles in their order, `LISTED` at most. The list has to begin with the answer, and its
        numbers with 1; it ends where a line is none of it, and empty lines do not count.
    """
    titles: list[str] = []
    for line in filter(str.strip, answer.splitlines()):
        found = _LINE.fullmatch(line)
        if found is None or int(found[1]) != len(titles) + 1:
            break
        titles.append(found[2])
    return titles[:LISTED]
