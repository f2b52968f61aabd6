"""Opens pages in headless Chromium and tells what a person with the developer tools would see."""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import pytest

# Debian's names, then those of other systems.
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = (
    "--headless",
    "--no-sandbox",  # as root, in containers
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)


@contextlib.contextmanager
def chromium():
    """A browser with a profile of its own; the test is skipped where none is installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (extra `dev`)")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for switch in (*SWITCHES, f"--user-data-dir={profile}"):
            options.add_argument(switch)
        session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            yield session
        finally:
            session.quit()


def open_page(session, path: Path) -> None:
    """Opens a file and checks that all of it is there, and that nothing was asked of a network."""
    # The browser's own first page asks for much, and what was before is no matter here.
    session.get("about:blank")
    session.get_log("browser")
    session.get_log("performance")
    address = path.resolve().as_uri()
    session.get(address)
    pictures = session.execute_script(
        "return [...document.images].map(i => [i.complete && i.naturalWidth > 0, i.alt])"
    )
    broken = [alt for loaded, alt in pictures if not loaded]
    assert not broken, f"pictures that did not load: {broken}"
    drawings = session.execute_script(
        "return [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width)"
    )
    assert all(width > 50 for width in drawings), f"widths of the drawings: {drawings}"
    messages = [entry["message"] for entry in session.get_log("browser")]
    assert not messages, f"the console says: {messages}"
    requests = {url for url in _requests(session) if not url.startswith("data:")}
    assert requests <= {address}, f"the page asked for {sorted(requests)[:5]}"


def _requests(session):
    for entry in session.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            yield message["params"]["request"]["url"]
