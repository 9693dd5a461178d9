"""Chromium without other packages: its debugging protocol over a pipe, so that a page is seen at any width, with mouse or touch."""

import base64
import functools
import itertools
import json
import os
import select
import shlex
import shutil
import subprocess
import tempfile
import time

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class NoAnswer(AssertionError):
    """Chromium itself ended, or did not come to what was asked of it in time."""


def browser(test):
    """A test that needs Chromium. One that ends or hangs, as it does on a machine without memory to spare, is started again once;
    whatever a page shows or says is judged at once."""

    @functools.wraps(test)
    def twice(*args, **kwargs):
        try:
            return test(*args, **kwargs)
        except NoAnswer as first:
            print(f"Chromium is started again: {first}")
        return test(*args, **kwargs)

    return pytest.mark.skipif(not PROGRAM, reason="Chromium is not installed")(twice)


class Page:
    """One page at ``width`` x ``height`` CSS pixels; ``touch``: a phone, whose taps make no mouse events of their own before."""

    def __init__(self, url: str, width: int, height: int = 900, touch: bool = False, scheme: str = "light", seconds: float = 120):
        self.end, self.numbers, self.buffer, self.errors = time.monotonic() + seconds, itertools.count(1), b"", []
        self.answers = {}
        read, self.write = os.pipe()
        self.read, write = os.pipe()
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars=false",
            "--remote-debugging-pipe",
            "--disable-background-networking",
            "--force-color-profile=srgb",
            f"--user-data-dir={self.profile}",
            "about:blank",
        ]
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec {shlex.join([PROGRAM, *flags])} 3<&{read} 4>&{write}"],
            pass_fds=(read, write),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Runtime.enable")
        self.call("Page.enable")
        self.call("Performance.enable", timeDomain="threadTicks")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch)
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.read)
        os.close(self.write)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method: str, **parameters):
        return self.answer(method, self.send(method, **parameters))

    def send(self, method: str, **parameters) -> int:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": self.session} if self.session else {})}
        data = json.dumps(message).encode() + b"\0"
        try:
            while data:
                data = data[os.write(self.write, data) :]
        except BrokenPipeError:
            raise NoAnswer("Chromium ended") from None
        return number

    def answer(self, method: str, number: int):
        while number not in self.answers:
            answer = self._receive()
            if "id" in answer:
                self.answers[answer["id"]] = answer
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(answer["params"]["exceptionDetails"])
        answer = self.answers.pop(number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _receive(self) -> dict:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read], [], [], max(0, self.end - time.monotonic()))
            if not ready:
                raise NoAnswer("Chromium gave no answer in time")
            part = os.read(self.read, 1 << 20)
            if not part:
                raise NoAnswer("Chromium ended")
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def _in_time(self, script: str) -> None:
        if time.monotonic() > self.end:
            raise NoAnswer(f"in time it did not become true that {script}")

    def run(self, script: str):
        """The value of a JavaScript expression, awaited where it is a promise."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str) -> None:
        while not self.run(script):
            self._in_time(script)
            time.sleep(0.02)

    def until(self, script: str, act, x: float, y: float) -> None:
        """``act`` at a place until ``script`` holds: on a machine that is busy elsewhere Chromium loses a tap now and then, as a screen does."""
        while True:
            act(x, y)
            again = time.monotonic() + 5
            while not self.run(script):
                self._in_time(script)
                if time.monotonic() > again:
                    break
                time.sleep(0.02)
            else:
                return

    def settle(self) -> None:
        """Until what was asked for has been drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def hover(self, x: float, y: float) -> None:
        """From beside it: a pointer that stands still is no news."""
        for beside in (1, 0):
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + beside, y=y)
        self.settle()

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def tap(self, x: float, y: float) -> None:
        """Both halves are sent before the first is answered: a finger that stays for half a second is a long press, which clicks nothing."""
        method = "Input.dispatchTouchEvent"
        down, up = self.send(method, type="touchStart", touchPoints=[{"x": x, "y": y}]), self.send(method, type="touchEnd", touchPoints=[])
        self.answer(method, down)
        self.answer(method, up)
        self.settle()

    def screenshot(self, path, whole: bool = False) -> None:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        with open(path, "wb") as file:
            file.write(base64.b64decode(shot["data"]))
