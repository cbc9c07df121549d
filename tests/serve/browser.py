"""A headless Chromium that a test drives as a user would, clicks and keys: WebDriver by hand, over plain HTTP.

browser = Browser(tmp_path)         # chromium and chromedriver must be there: `missing()` says what is not
browser.open(url)
browser.keys("#prompt", "A crane.", ENTER)
browser.wait("return document.querySelector('.answer img')")
"""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "google-chrome", "chromium-browser")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--no-proxy-server", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
ENTER, ESCAPE, SHIFT, NULL = "\ue007", "\ue00c", "\ue008", "\ue000"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""Under this name WebDriver hands out elements."""


def missing() -> str:
    """What a browser test lacks here, or nothing."""
    lacking = [] if any(map(shutil.which, BROWSERS)) else ["chromium"]
    lacking += [] if shutil.which("chromedriver") else ["chromedriver"]
    return " and ".join(lacking)


class Browser:
    def __init__(self, folder: Path):
        self.downloads = folder / "downloads"
        self.downloads.mkdir()
        self.driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
        assert self.driver.stdout is not None
        found = next(filter(None, (re.search(r"successfully on port (\d+)", line) for line in self.driver.stdout)))
        self.port, self.session = int(found[1]), ""
        options = {
            "binary": next(filter(None, map(shutil.which, BROWSERS))),
            "args": [*FLAGS, f"--user-data-dir={folder / 'home'}"],
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        try:
            self.session = self._call("POST", "", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
            self.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self.session:
            self._call("DELETE", "")
        self.driver.terminate()
        self.driver.wait(30)

    def open(self, url: str, width: int = 1200, height: int = 900) -> None:
        """Forgets what the console said so far."""
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._call("POST", "/url", {"url": url})
        self.log()

    def click(self, selector: str) -> None:
        self._call("POST", f"/element/{self._find(selector)}/click", {})

    def keys(self, selector: str, *words: str) -> None:
        """Typed into an element; to an input of files, the path of one."""
        self._call("POST", f"/element/{self._find(selector)}/value", {"text": "".join(words)})

    def script(self, code: str, *arguments: Any) -> Any:
        """What its `return` gives."""
        return self._call("POST", "/execute/sync", {"script": code, "args": arguments})

    def wait(self, code: str, *arguments: Any, seconds: float = 60.0) -> Any:
        """Until the script returns something that is true."""
        end = time.monotonic() + seconds
        while not (found := self.script(code, *arguments)):
            assert time.monotonic() < end, f"never: {code}\n{self.script('return document.body.innerText')}"
            time.sleep(0.05)
        return found

    def log(self) -> list[str]:
        """What the console has said since it was last asked: breaches of the policy and errors of scripts among it."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def cdp(self, command: str, **parameters: Any) -> Any:
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def downloaded(self, ending: str, seconds: float = 30.0) -> Path:
        """The file, once it is whole, taken out of the folder."""
        end = time.monotonic() + seconds
        while not (found := [path for path in self.downloads.iterdir() if path.suffix == ending]):
            assert time.monotonic() < end, f"no {ending} came"
            time.sleep(0.05)
        return found[0].rename(self.downloads.parent / f"saved{ending}")

    def _find(self, selector: str) -> str:
        return self._call("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=240)
        place = f"/session/{self.session}{path}" if self.session else "/session"
        connection.request(method, place, None if body is None else json.dumps(body))
        value = json.loads(connection.getresponse().read())["value"]
        connection.close()
        if isinstance(value, dict) and "error" in value and "stacktrace" in value:
            raise AssertionError(f"{value['error']}: {value['message']}")
        return value
