"""What reaches a listening server before any application does, on the loopback interface."""

import asyncio

from cprec.config.sections.recommendation import ServeSettings
from cprec.serving.dispatcher import Dispatcher
from cprec.serving.http_app import build_app
from cprec.serving.http_server import MAX_HEADER_BYTES, build_server, listen
from cprec.serving.metrics import ServerMetrics

SETTINGS = ServeSettings(port=0, timeout_s=0.5)
BEGINNING = b"POST /rank HTTP/1.1\r\nHost: a\r\n"


async def ask(request: bytes, repeated: bytes = b"") -> tuple[bytes, int]:
    """Returns the answer to a request, and how many times a part was sent after it until then."""
    metrics = ServerMetrics()
    app = build_app(SETTINGS, Dispatcher(SETTINGS, metrics), metrics, "the-token-of-this-test")
    with listen(SETTINGS, "serve") as listener:
        server = build_server(app, 1)
        serving = asyncio.create_task(server.serve([listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname()[:2])
        writer.write(request)
        answer = asyncio.create_task(reader.read(-1 if not repeated else 12))
        sent = 0
        while repeated and not answer.done():
            writer.write(repeated)
            await asyncio.sleep(0)
            sent += 1
        content = await answer
        writer.close()
        server.should_exit = True
        await serving
    return content, sent


def test_endless_headers_are_cut_off() -> None:
    header = b"X-Header: " + b"x" * 1000 + b"\r\n"
    content, sent = asyncio.run(ask(BEGINNING, header))
    assert content == b"HTTP/1.1 400"
    assert sent < 100 * MAX_HEADER_BYTES / len(header)


def test_without_a_token_no_body_is_waited_for() -> None:
    content, _ = asyncio.run(ask(BEGINNING + b"Content-Length: 99\r\n\r\n"))
    assert content.startswith(b"HTTP/1.1 401")
