"""A real Chromium, driven over the DevTools protocol, as far as the tests need one."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from websockets.sync.client import connect

from tests.e2e.stack import wait_until

_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1280,1000",
    "--remote-debugging-port=0",
)


class NoPage(Exception):
    """One page has gone and the next is not there yet, so nothing was done."""


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()


class Browser:
    """One page of one browser. ``errors`` collects what the page wrote to its console as errors, and exceptions."""

    def __init__(self, directory: Path, *, language: str = "en") -> None:
        self.errors: list[str] = []
        self._directory = directory
        self._language = language
        self._number = 0
        self._ending = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as ending:
            # Events pile up unread between two calls, and answers to pings behind them.
            options: dict[str, Any] = {"max_size": None, "max_queue": None, "ping_interval": None, "open_timeout": 60}
            self._socket = ending.enter_context(connect(self._start(ending), **options))
            for domain in ("Page", "Runtime", "Log", "Network"):
                self._call(f"{domain}.enable")
            self._call("Network.setExtraHTTPHeaders", headers={"Accept-Language": self._language})
            self._ending = ending.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.close()

    def _start(self, ending: ExitStack) -> str:
        """Start Chromium and return the address of its page's DevTools socket."""
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        assert program is not None
        process = ending.enter_context(
            subprocess.Popen(
                [program, *_OPTIONS, f"--user-data-dir={self._directory}", "about:blank"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        ending.callback(_end, process)
        port_file = self._directory / "DevToolsActivePort"
        wait_until(lambda: port_file.exists() and bool(port_file.read_text()), seconds=90, what="Chromium starts")
        port = port_file.read_text().split()[0]
        pages: list[str] = []

        def has_page() -> bool:
            targets = httpx.get(f"http://127.0.0.1:{port}/json", timeout=60, trust_env=False).json()
            pages[:] = [target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page"]
            return bool(pages)

        wait_until(has_page, seconds=60, what="Chromium opens its page")
        return pages[0]

    def forget(self) -> None:
        """Sign out of everything and forget earlier errors."""
        self._call("Network.clearBrowserCookies")
        self.open("about:blank")
        self.errors.clear()

    def open(self, url: str) -> None:
        """Load a page and wait until nothing of it is under way."""
        # The old page, complete as it is, may answer for a moment longer.
        self.run("window.left = true")
        self._call("Page.navigate", url=url)
        loaded = "document.readyState == 'complete' && !window.left"
        wait_until(lambda: bool(self.run(loaded)), seconds=60, what=f"{url} is loaded")

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page; between two pages wait for the second."""
        parameters = {"expression": script, "returnByValue": True, "awaitPromise": True}
        deadline = time.monotonic() + 60
        while True:
            try:
                answer = self._call("Runtime.evaluate", **parameters)
            except NoPage:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            else:
                return answer.get("result", {}).get("value")

    def text(self) -> str:
        return self.run("document.body ? document.body.innerText : ''") or ""

    def wait_for(self, text: str) -> None:
        """Wait until the page shows a text; what scripts render comes after loading."""
        wait_until(lambda: text in self.text(), seconds=60, what=f"the page shows {text!r}")

    def wait_for_element(self, selector: str) -> None:
        """Wait until the page has an element."""
        script = f"document.querySelector({json.dumps(selector)}) !== null"
        wait_until(lambda: bool(self.run(script)), seconds=60, what=f"the page has {selector}")

    def screenshot(self, path: Path) -> None:
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            self._notice(message)
            if message.get("id") == number:
                if "Cannot find" in message.get("error", {}).get("message", ""):
                    raise NoPage(message)
                assert "error" not in message, message
                return message["result"]

    def _notice(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(str(parameters["exceptionDetails"].get("text")))
            case "Log.entryAdded" if parameters["entry"]["level"] == "error":
                self.errors.append(f"{parameters['entry'].get('url', '')}: {parameters['entry']['text']}")
            case "Runtime.consoleAPICalled" if parameters["type"] == "error":
                self.errors.append(str(parameters["args"]))
