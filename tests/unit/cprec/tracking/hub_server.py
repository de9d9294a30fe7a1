"""A small hub on the loopback interface: what Hugging Face's client needs to push a repository.

It takes all files in the commit itself. A real hub has the client upload large ones to its store.
"""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "x" * 12


class Hub(ThreadingHTTPServer):
    """A hub that knows one token.

    Attributes:
        repositories: Private or not, by name of a repository that was created.
        files: Content of each file that was committed.
        writable: Whether the token may write.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.writable = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serves a hub while the block runs."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        if not self._is_known():
            self._answer({"error": "Invalid user token."}, 401)
        elif self.path.startswith("/api/whoami"):
            self._answer({"name": "shop", "type": "user"})
        elif self.path.removeprefix("/api/models/") in self.server.repositories:
            self._answer({"id": self.path.removeprefix("/api/models/"), "siblings": []})
        else:
            self._answer({"error": "Not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.server.writable:
            self._answer({"error": "You may not write to this repository"}, 403)
        elif self.path == "/api/validate-yaml":  # the metadata of README.md
            self._answer({"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'shop')}/{asked['name']}"
            self.server.repositories[name] = asked.get("visibility") == "private"
            self._answer({"url": f"{self.server.url}/{name}", "name": name})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            self._commit([json.loads(line)["value"] for line in body.splitlines()[1:]])
        else:
            self._answer({"error": f"no such address: {self.path}"}, 404)

    def _commit(self, operations: list[dict[str, Any]]) -> None:
        for value in operations:
            self.server.files[value["path"]] = base64.b64decode(value["content"])
        self._answer(
            {
                "commitUrl": f"{self.server.url}/shop/ranker/commit/1",
                "commitOid": "1",
                "success": True,
            }
        )

    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _answer(
        self, value: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (its name in the base)
        """Logs nothing."""
