"""The token is read once and never shown; a body is cut off where it is too long."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import RecipeError
from cprec.serving.access import (
    OPEN_PATHS,
    TOKEN_VARIABLE,
    AccessGate,
    Message,
    Receive,
    Send,
    is_allowed,
    read_token,
)

TOKEN = "a-token-of-enough-characters"
LIMIT = 100


def test_the_token_leaves_the_environment() -> None:
    environment = {TOKEN_VARIABLE: TOKEN, "HOME": "/"}
    assert read_token(environment) == TOKEN
    assert environment == {"HOME": "/"}


def test_the_token_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert read_token({f"{TOKEN_VARIABLE}_FILE": str(file)}) == TOKEN
    with pytest.raises(RecipeError, match=r"TOKEN_FILE \(.*/nowhere\): cannot be read: No such"):
        read_token({f"{TOKEN_VARIABLE}_FILE": str(tmp_path / "nowhere")})
    file.write_bytes(b"\xff" * 20)
    with pytest.raises(RecipeError, match="no UTF-8 text"):
        read_token({f"{TOKEN_VARIABLE}_FILE": str(file)})


@pytest.mark.parametrize(
    "token", ["short", "a-token with a blank in it", "ein-schlüssel-für-öfter"]
)
def test_a_bad_token_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(RecipeError) as refused:
        read_token({TOKEN_VARIABLE: token})
    assert TOKEN_VARIABLE in str(refused.value)
    assert token not in str(refused.value)


def test_without_a_token_the_message_says_how_to_make_one() -> None:
    with pytest.raises(RecipeError, match="token_urlsafe"):
        read_token({})


@given(st.binary(max_size=40))
def test_only_the_token_is_allowed(given_token: bytes) -> None:
    assert not is_allowed({b"authorization": given_token}, TOKEN)
    assert not is_allowed({b"authorization": b"Basic " + TOKEN.encode()}, TOKEN)
    allowed = is_allowed({b"authorization": b"Bearer " + given_token}, TOKEN)
    assert allowed == (given_token.strip() == TOKEN.encode())
    assert is_allowed({b"authorization": b"bearer " + TOKEN.encode()}, TOKEN)


def ask(
    path: str, parts: list[bytes], headers: dict[str, str], stalls: bool = False
) -> tuple[int, bytes, int]:
    """Sends a body in parts; returns status and content, and how many parts were read.

    The application behind the gate sends back what it was sent. A client that stalls never sends
    the end.
    """
    sent: list[Message] = []
    left = list(parts)

    async def receive() -> Message:
        if not left and stalls:
            await asyncio.Event().wait()
        if not left:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left) or stalls}

    async def send(message: Message) -> None:
        sent.append(message)

    async def echo(scope: Any, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": raw}
    asyncio.run(AccessGate(echo, TOKEN, LIMIT, 0.01 if stalls else 60)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"], len(parts) - len(left)


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=6))
def test_a_body_passes_whole_or_is_refused(parts: list[bytes]) -> None:
    body = b"".join(parts)
    status, content, _ = ask("/rank", parts, {"authorization": f"Bearer {TOKEN}"})
    assert status == (200 if len(body) <= LIMIT else 413)
    assert (content == body) == (status == 200)


def test_a_client_that_stalls_is_not_waited_for() -> None:
    status, content, read = ask("/rank", [b"a", b"b"], {"authorization": f"Bearer {TOKEN}"}, True)
    assert (status, read) == (408, 2)
    assert b"within 0.01 s (serve.timeout_s)" in content


def test_nothing_is_read_of_what_is_refused_at_once() -> None:
    parts = [b"a" * 60] * 5
    assert ask("/rank", parts, {})[::2] == (401, 0)
    long = {"authorization": f"Bearer {TOKEN}", "content-length": "300"}
    assert ask("/rank", parts, long)[::2] == (413, 0)
    assert ask("/rank", parts, {"authorization": f"Bearer {TOKEN}"})[::2] == (413, 2)
    for path in OPEN_PATHS:
        assert ask(path, [b""], {})[0] == 200
