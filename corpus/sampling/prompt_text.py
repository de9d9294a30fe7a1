"""The fixed text of the prompt (paper Table 1), between which the titles of a sample stand.

`cprec.encode.prompt` renders it, and `corpus.ingest.prompt_injection` looks for it in titles
(docs/decisions/021-prompt-injection.md).
"""

OPENING = "This user has bought {"
MIDDLE = (
    "} in the previous. Please predict the next item this user will buy. "
    "The item title candidates are {"
)
CLOSING = "}. Choose only one item from the candidates. The answer is"
SEPARATOR = ", "
