"""Dagster's UI in a browser: starts webserver and chromium, opens the pages of tests and pictures.

Finds elements on Dagster's pages and makes no assertions. Waits for what a page has to show, never for time.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from uveitis_assets_tests.e2e.sample_instance import REPOSITORY, SampleInstance
from uveitis_assets_tests.patience import patience

LOCATION = "uveitis_assets"
_START_S, _PAGE_S = 60.0, 30.0
_CHROMIUM_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--lang=en-US",
)


def chromium_programs() -> tuple[str, str] | None:
    """Paths of chromium and its driver; None where one is missing."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def webserver(sample: SampleInstance, module: str) -> Iterator[str]:
    """Serve the UI of an instance; yields its address. The whole process group is gone afterwards.

    Args:
        sample: the instance.
        module: module with the definitions.

    Raises:
        RuntimeError: the server ends, does not answer within a minute or cannot load the module; with its log.
    """
    location = {"module_name": module, "location_name": LOCATION, "working_directory": str(REPOSITORY)}
    workspace = sample.home / "workspace.yaml"
    workspace.write_text(json.dumps({"load_from": [{"python_module": location}]}))
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    log = sample.home / "webserver.log"
    command = [sys.executable, "-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(port), "-w", str(workspace)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=sample.home,
            env={**os.environ, **sample.variables, "DAGSTER_DISABLE_TELEMETRY": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for_answer(process, address, log)
        if "Error loading repository location" in log.read_text():
            raise RuntimeError(f"the webserver cannot load {module}:\n{log.read_text()[-4000:]}")
        yield address
    finally:
        _end_group(process)


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A headless chromium with an empty profile."""
    programs = chromium_programs()
    assert programs is not None, "ask chromium_programs() first"
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        for flag in (*_CHROMIUM_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
        try:
            yield driver
        finally:
            driver.quit()


class UserInterface:
    """Pages of the UI, as a user opens them."""

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver = driver
        self.address = address
        self.set_window(1600, 1000)

    def set_window(self, width: int, height: int, scale: float = 1.0) -> None:
        """Size of the page in CSS pixels, and how many screen pixels make one of them."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def open_lane_graph(self, lane: str, n_checked: int) -> None:
        """Open a lane's asset graph and wait until its nodes show checks and partitions."""
        self._open(f"/locations/{LOCATION}/asset-groups/{lane}/lineage")
        self._wait(lambda: len(self.all("//span[contains(., ' Passed')]")) == n_checked, f"{n_checked} nodes' checks")
        self._wait(lambda: len(self.all("//*[text()='100% filled']")) > 0, "filled partitions")

    def node(self, name: str) -> WebElement:
        """An asset's node in the open graph, with its kinds."""
        return self.first(f"//*[@data-tooltip='{name}']/ancestor::*[local-name()='foreignObject']")

    def open_asset(self, asset: str, awaited: str) -> None:
        """Open an asset's overview and wait for a text."""
        self._open(f"/assets/{asset}")
        self.see(awaited)

    def open_partition(self, asset: str, partition: str, awaited: str) -> None:
        """Open the page of one partition of an asset and wait for a text."""
        self._open(f"/assets/{asset}?view=partitions&partition={partition}")
        self.see(awaited)

    def open_checks(self, asset: str, awaited: str = "Latest execution") -> None:
        """Open an asset's checks and wait for a text; the first check is shown."""
        self._open(f"/assets/{asset}?view=checks")
        self.see(awaited)

    def open_run(self, run_id: str, awaited: str) -> None:
        """Open a run's log and wait for a text."""
        self._open(f"/runs/{run_id}")
        self.see(awaited)

    def open_dialog(self, label: str) -> WebElement:
        """Click the long value of a metadata entry, which opens a dialog; returns that."""
        row = self.first(f"//tr[td[1][normalize-space()='{label}']]")
        row.find_element(By.XPATH, ".//*[starts-with(text(), '[Show')]").click()
        return self.first("//*[@role='dialog']")

    def open_materialize_dialog(self) -> WebElement:
        """Click the button Materialize of an asset's page; returns the dialog."""
        self.first("//button[contains(., 'Materialize')]").click()
        return self.first("//*[@role='dialog']")

    def all(self, xpath: str) -> list[WebElement]:
        """Elements that are shown now."""
        return [element for element in self.driver.find_elements(By.XPATH, xpath) if element.is_displayed()]

    def first(self, xpath: str) -> WebElement:
        """Wait for an element to be shown and at rest."""
        self._wait(lambda: len(self.all(xpath)) > 0, xpath)
        element = self.all(xpath)[0]
        self._at_rest(element)
        return element

    def see(self, text: str) -> None:
        """Wait until the page shows a text."""
        self._wait(lambda: text in self.text(), text)

    def text(self) -> str:
        """What the page shows."""
        return self.driver.find_element(By.TAG_NAME, "body").text

    def see_picture(self, within: WebElement) -> WebElement:
        """Wait for a picture inside an element to be decoded; returns it."""
        pictures = within.find_elements(By.TAG_NAME, "img")
        assert len(pictures) == 1, f"expected one picture, found {len(pictures)}"
        complete = "return arguments[0].complete"
        self._wait(lambda: bool(self.driver.execute_script(complete, pictures[0])), "a decoded picture")
        return pictures[0]

    def _open(self, path: str) -> None:
        self.driver.get(self.address + path)

    def _at_rest(self, element: WebElement) -> None:
        """Wait for dialogs and graphs to end their motion."""
        last = element.rect
        for _ in range(40):
            self.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
            if element.rect == last:
                return
            last = element.rect

    def _wait(self, condition: Callable[[], bool], awaited: str) -> None:
        WebDriverWait(self.driver, _PAGE_S, poll_frequency=0.1).until(
            lambda _: _holds(condition), f"{self.driver.current_url}: waited for {awaited}"
        )


def _holds(condition: Callable[[], bool]) -> bool:
    """The page redraws itself while it is read: what went away meanwhile is no answer."""
    try:
        return condition()
    except StaleElementReferenceException:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_answer(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + patience(_START_S)
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with suppress(URLError, OSError), urlopen(f"{address}/server_info", timeout=patience(5)):
            return
        time.sleep(0.1)
    raise RuntimeError(f"the webserver does not answer at {address}:\n{log.read_text()[-4000:]}")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """The code server is a child in the same group: a signal to the webserver alone would leave it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=patience(10))
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=patience(10))
