"""A real Chromium without a screen, by the DevTools protocol over a pipe: no driver, no WebSocket.

Messages are JSON, each ended by a NUL. One thread: events are kept while an answer is waited for.
"""

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import time

from support import DEADLINE

NAMES = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = (
    *("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--no-default-browser-check"),
    *("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"),  # for root, and in containers
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--disable-default-apps", "--password-store=basic", "--mute-audio"),
    *("--no-proxy-server", "--disable-breakpad", "--disable-crash-reporter", "--hide-scrollbars"),
    *("--disable-renderer-backgrounding", "--force-color-profile=srgb"),
    "--font-render-hinting=none",
    *("--autoplay-policy=no-user-gesture-required", "--disable-features=Translate,MediaRouter"),
)
TEXT_OF = {"Enter": "\r", "Tab": "\t", "Space": " "}
CODE_OF = {"Enter": 13, "Tab": 9, "Escape": 27, "Home": 36, "End": 35, "PageDown": 34, "PageUp": 33}
CODE_OF.update(ArrowLeft=37, ArrowUp=38, ArrowRight=39, ArrowDown=40, Delete=46)

COUNTING_FRAMES = """
    window.framesLoaded = 0;
    document.addEventListener("load", ({ target }) => {
        if (target.tagName === "IFRAME") window.framesLoaded += 1;
    }, true);
"""
"""To be run in a page: so many frames have come to the end of loading."""


def find_chromium():
    """Give its path, or ``None``."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class BrowserError(Exception):
    """What the browser says of a command that it cannot do."""


class Browser:
    """One browser with a profile of its own; ``with Browser(directory) as browser:``."""

    def __init__(self, directory):
        self.events = []
        self._numbers = itertools.count(1)
        self._answers = {}
        self._pages = {}
        self._buffer = b""
        reading, its_writing = pipe()
        its_reading, writing = pipe()
        home = {name: str(directory) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
        program = find_chromium()
        self.process_id = os.posix_spawn(
            program,
            [program, *SWITCHES, f"--user-data-dir={directory / 'profile'}", "about:blank"],
            {**os.environ, **home},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, its_reading, 3),
                (os.POSIX_SPAWN_DUP2, its_writing, 4),
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, str(directory / "log"), os.O_WRONLY | os.O_CREAT, 0o600),
            ],
            setpgroup=0,
        )
        os.close(its_reading)
        os.close(its_writing)
        self._reading, self._writing = reading, writing

    def __enter__(self):
        self.call("Browser.getVersion", seconds=3 * DEADLINE)
        self.call("Target.setDiscoverTargets", discover=True)
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError, EOFError, TimeoutError, BrowserError):
            self.call("Browser.close")
        for descriptor in (self._reading, self._writing):
            os.close(descriptor)
        with contextlib.suppress(ProcessLookupError):  # its group is its own
            os.killpg(self.process_id, signal.SIGKILL)
        os.waitpid(self.process_id, 0)

    # -- messages ------------------------------------------------------------------------------

    def send(self, method, session=None, **parameters):
        """Say something; give the number of the answer to come."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        octets = json.dumps(message).encode() + b"\0"
        while octets:
            octets = octets[os.write(self._writing, octets) :]
        return number

    def call(self, method, session=None, seconds=DEADLINE, **parameters):
        """Say something; give the answer."""
        number = self.send(method, session, **parameters)
        self.listen(lambda: number in self._answers, seconds, method)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def listen(self, is_over, seconds=DEADLINE, what="event"):
        """Take what the browser says until something holds."""
        due = time.monotonic() + seconds
        while not is_over():
            if not self.hear(due - time.monotonic()):
                raise TimeoutError(f"{what}: nothing in {seconds} s")

    def idle(self, seconds):
        """Let the browser do what it has under way, and take what it says."""
        due = time.monotonic() + seconds
        while (left := due - time.monotonic()) > 0:
            self.hear(left)

    def hear(self, seconds):
        """Take what it says next; give whether it said anything."""
        if not select.select([self._reading], [], [], max(0, seconds))[0]:
            return False
        octets = os.read(self._reading, 1 << 20)
        if not octets:
            raise EOFError("the browser has gone")
        *messages, self._buffer = (self._buffer + octets).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self._note(message)
        return True

    def _note(self, event):
        self.events.append(event)
        if event["method"] == "Page.javascriptDialogOpening":
            self.send("Page.handleJavaScriptDialog", event["sessionId"], accept=True)

    def named(self, method):
        """Give the parameters of all events of one name."""
        return [event["params"] for event in self.events if event["method"] == method]

    # -- pages ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def page(self, width=1200, height=760, downloads=None):
        """Give a page in a context of its own, as if in a new profile."""
        self.events.clear()
        context = self.call("Target.createBrowserContext")["browserContextId"]
        if downloads:
            self.call(
                "Browser.setDownloadBehavior",
                behavior="allow",
                browserContextId=context,
                downloadPath=str(downloads),
                eventsEnabled=True,
            )
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        page = Page(self, target["targetId"])
        page.resize(width, height)
        try:
            yield page
        finally:
            self.call("Target.disposeBrowserContext", browserContextId=context)

    def windows(self):
        """Give the addresses of all pages that are open."""
        targets = self.call("Target.getTargets")["targetInfos"]
        return [each["url"] for each in targets if each["type"] == "page"]


class Page:
    """One page: what it shows, and hands on keyboard and mouse."""

    def __init__(self, browser, target):
        self.browser = browser
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setLocaleOverride", locale="en-GB")
        self.call("Emulation.setTimezoneOverride", timezoneId="UTC")

    def call(self, method, **parameters):
        return self.browser.call(method, self._session, **parameters)

    def open(self, url):
        """Go to an address."""
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def run(self, expression):
        """Evaluate JavaScript, a promise to its end; give the value."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise BrowserError(details.get("exception", details).get("description", details))
        return answer["result"].get("value")

    def until(self, expression, seconds=DEADLINE):
        """Wait for an expression to be true; give its value."""
        due = time.monotonic() + seconds
        while True:
            with contextlib.suppress(BrowserError):  # the document was left just now
                if found := self.run(expression):
                    return found
            if time.monotonic() > due:
                shown = self.run("document.body?.innerText.slice(0, 2000)")
                raise AssertionError(f"not in {seconds} s: {expression}\n{shown}")
            self.browser.hear(0.01)

    def text(self, selector):
        """Give the text of an element as it is laid out, ``None`` where there is none."""
        return self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? null")

    def before(self, script):
        """Have a script run in each document before its own."""
        self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def key(self, *keys):
        """Press keys, one after the other; what is one character is typed."""
        for key in keys:
            text = TEXT_OF.get(key, key if len(key) == 1 else "")
            code = CODE_OF.get(key, ord(key.upper()) if key.isalnum() and len(key) == 1 else 0)
            known = {"key": TEXT_OF["Space"] if key == "Space" else key, "text": text}
            known["windowsVirtualKeyCode"] = code
            kind = "keyDown" if text else "rawKeyDown"
            self.call("Input.dispatchKeyEvent", type=kind, **known)
            self.call("Input.dispatchKeyEvent", type="keyUp", **known)

    def point(self, x, y):
        """Move the mouse."""
        self._mouse("mouseMoved", x=x, y=y)

    def click(self, x, y):
        """Press the mouse's button at a place of the page; what comes of it is to be waited for."""
        self.point(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self._mouse(kind, x=x, y=y, button="left", clickCount=1)

    def click_into_frame(self, *places):
        """Press the button at places of a frame, until it takes it: it may have come just now."""
        due = time.monotonic() + DEADLINE
        while time.monotonic() < due:
            for place in places:
                self.click(*place)
            if self.run("document.activeElement.tagName === 'IFRAME'"):
                return
            self.browser.idle(0.05)
        raise AssertionError("the frame takes no click")

    def _mouse(self, kind, **values):
        # A frame that goes away under the mouse never answers.
        self.browser.send("Input.dispatchMouseEvent", self._session, type=kind, **values)

    def click_on(self, selector):
        """Press the mouse's button on an element."""
        self.click(*self.until(f"(() => {{ {MIDDLE % json.dumps(selector)} }})()"))

    def resize(self, width, height, scale=1):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    def prefer(self, **features):
        """Set media features: ``prefer(color_scheme="dark")``."""
        wanted = [
            {"name": f"prefers-{name.replace('_', '-')}", "value": value}
            for name, value in features.items()
        ]
        self.call("Emulation.setEmulatedMedia", features=wanted)

    def picture(self):
        """Give a picture of it, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def complaints(self):
        """Give what the console has of errors and warnings, in the page and from the browser."""
        logged = [each["entry"] for each in self.browser.named("Log.entryAdded")]
        said = self.browser.named("Runtime.consoleAPICalled")
        thrown = self.browser.named("Runtime.exceptionThrown")
        return [
            *(each["text"] for each in logged if each["level"] in ("warning", "error")),
            *(str(each["args"]) for each in said if each["type"] in ("warning", "error")),
            *(str(each["exceptionDetails"]) for each in thrown),
        ]


MIDDLE = """
    const found = document.querySelector(%s);
    if (!found || !found.checkVisibility()) return null;
    found.scrollIntoView({ block: "nearest" });
    const { left, top, width, height } = found.getClientRects()[0]; // a link may have two lines
    return [left + width / 2, top + height / 2];
"""


def pipe():
    """Give the ends of a pipe, with numbers that are not those the browser wants."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high
