"""A real browser without a window, driven over the DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

LIMIT_S = 400.0
"""Seconds that a page may take to come to be as expected: the machine may be busy."""

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find() -> str | None:
    """Returns the browser of this machine; None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One page of a browser."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.urls: list[str] = []
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Calls a method of the protocol, and takes note of events meanwhile."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(LIMIT_S))
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._note(message.get("method", ""), message.get("params", {}))

    def _note(self, event: str, values: Any) -> None:
        if event == "Network.requestWillBeSent":
            self.urls.append(values["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(values["exceptionDetails"])[:500])
        elif event == "Log.entryAdded" and values["entry"]["source"] in ("security", "javascript"):
            self.complaints.append(values["entry"]["text"])

    def open(self, url: str) -> None:
        """Opens a URL."""
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """Returns the value of an expression of JavaScript; waits for a promise."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, (expression, answer["exceptionDetails"])
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Waits until an expression is true, and returns its value."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            if value := self.evaluate(expression):
                return value
            time.sleep(0.2)
        raise AssertionError(f"never came: {expression}\n{self.text()[:3000]}")

    def text(self) -> str:
        """Returns the text that a person sees."""
        return str(self.evaluate("document.body?.innerText ?? ''"))

    def wait_for_text(self, text: str) -> None:
        """Waits until the page shows a text."""
        self.wait_for(f"document.body?.innerText.includes({json.dumps(text)})")

    def click(self, selector: str) -> None:
        """Clicks the middle of an element, as a mouse does, once it is there and enabled."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.wait_for(f"{found} && !{found}.disabled")
        self.evaluate(f"{found}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.evaluate(f"{found}.getBoundingClientRect().toJSON()")
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def screenshot(self, width: int, height: int | None = None, dark: bool = False) -> bytes:
        """Returns a picture (PNG) of the page at a width; without a height, of all of it."""
        metrics = {"width": width, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", height=height or 900, **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        time.sleep(1.0)
        if height is None:
            full = int(self.evaluate("document.documentElement.scrollHeight"))
            self.call("Emulation.setDeviceMetricsOverride", height=full, **metrics)
            time.sleep(0.5)
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


class Browser:
    """A browser with a profile of its own, for a `with` block."""

    def __init__(self, executable: str, profile: Path) -> None:
        # A browser that root starts has no sandbox; it opens this project's page only.
        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
        self._process = subprocess.Popen(
            [
                executable,
                "--headless=new",
                *sandbox,
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--hide-scrollbars",
                "--remote-debugging-port=0",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._port_file = profile / "DevToolsActivePort"
        self._sockets = ExitStack()

    def new_page(self) -> Page:
        """Opens a page."""
        end = time.monotonic() + LIMIT_S
        while not (self._port_file.exists() and self._port_file.read_text().strip()):
            assert self._process.poll() is None, "the browser ended"
            assert time.monotonic() < end, "the browser does not start"
            time.sleep(0.1)
        port = self._port_file.read_text().split()[0]
        request = urllib.request.Request(f"http://127.0.0.1:{port}/json/new", method="PUT")
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            url = json.load(answer)["webSocketDebuggerUrl"]
        # No pings: nobody reads while a test waits for something else.
        connection = connect(url, max_size=None, ping_interval=None, open_timeout=LIMIT_S)
        return Page(self._sockets.enter_context(connection))

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._sockets.close()
        self._process.terminate()
        self._process.wait(30)
