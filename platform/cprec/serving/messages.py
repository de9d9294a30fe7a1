"""What a client sends and gets, and what is refused before a model sees it. Pure."""

from http import HTTPStatus

from pydantic import BaseModel, ConfigDict, Field

from cprec.config.sections.recommendation import ServeSettings


class RankRequest(BaseModel):
    """A history, and the candidates that are to be ranked as its next item."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Fails fast: the errors of a list of 100,000 numbers would take seconds to write.
    history: tuple[str, ...] = Field(
        fail_fast=True, description="item ids of the domain, the oldest first"
    )
    candidates: tuple[str, ...] | None = Field(
        None,
        fail_fast=True,
        description="item ids to rank; without them, items are retrieved of the whole domain",
    )
    k: int | None = Field(
        None, ge=1, strict=True, description="items of the answer, at most; default: recommend.k"
    )


class RankedItem(BaseModel):
    """An item of an answer."""

    item: str = Field(description="its id")
    title: str = Field(description="its title")
    score: float = Field(description="log-likelihood of the title after the history")
    probability: float = Field(
        description="softmax of the scores of all candidates, shown or not; not calibrated"
    )


class RankResponse(BaseModel):
    """The best items, best first."""

    items: tuple[RankedItem, ...] = Field(description="the best items, best first")
    candidates: int = Field(description="number of items that were ranked")
    model: str = Field(description="the model that ranked them, such as version-3")
    domain: str = Field(description="domain of the items")


class Problem(BaseModel):
    """Why a request was not answered."""

    error: str = Field(description="what is wrong, where, what was seen, and what is allowed")


class Refusal(Exception):
    """A request that is not answered, with the status and the message that a client gets."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = HTTPStatus(status)
        self.message = message


def check_limits(request: RankRequest, settings: ServeSettings) -> None:
    """Checks the size of a request.

    Raises:
        Refusal: It is too large; says what is allowed.
    """
    sizes = [
        ("history", len(request.history), settings.max_history, "serve.max_history"),
        (
            "candidates",
            len(request.candidates or ()),
            settings.max_candidates,
            "serve.max_candidates",
        ),
        ("k", request.k or 0, settings.max_candidates, "serve.max_candidates"),
    ]
    for name, seen, allowed, key in sizes:
        if seen > allowed:
            raise Refusal(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                f"{name}: {seen:,}; this server takes {allowed:,} at most ({key})",
            )
