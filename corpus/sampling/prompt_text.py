"""The sentences of the prompt (paper Table 1), between which the titles of a sample stand.

`cprec.encode.prompt` makes prompts of them, and `corpus.ingest.prompt_injection` looks for them in
titles (docs/decisions/021-prompt-injection.md).
"""

HEAD = "This user has bought"
BETWEEN = (
    "in the previous. Please predict the next item this user will buy. The item title candidates "
    "are"
)
TAIL = "Choose only one item from the candidates. The answer is"
SEPARATOR = ", "
