"""Chromium for tests of the page: `open_browser`, or a skip that says what is missing; and what is done on the page."""
import contextlib
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.processes import until

ARGUMENTS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--hide-scrollbars")


@contextlib.contextmanager
def open_browser(folder, width=1280, height=900, dark=False):
    """Within, a browser with a profile of its own in a folder."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, path in found.items():
        if path is None:
            pytest.skip(f"{name} is not installed")
    options = selenium.ChromeOptions()
    options.binary_location = found["chromium"]
    for argument in (*ARGUMENTS, f"--user-data-dir={folder}", f"--window-size={width},{height}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = selenium.Chrome(options=options, service=selenium.ChromeService(found["chromedriver"]))
    try:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {
            "features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})
        yield browser
    finally:
        browser.quit()


class Page:
    """The page in a browser; `of` finds an element by its id."""
    def __init__(self, browser, server):
        self.browser, self.server = browser, server
        self.open()

    def open(self):
        self.browser.get(self.server.url)
        until(lambda: self.run("return document.body.dataset.ready"))

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def of(self, name):
        return self.browser.find_element("id", name)

    def value(self, name):
        return self.run("return document.getElementById(arguments[0]).value", name)

    def fill(self, **values):
        for name, value in values.items():
            self.of(name).clear()
            self.of(name).send_keys(str(value))

    def shown(self):
        return self.run("return document.getElementById('shown').getAttribute('src') || ''")


def first_picture(page):
    """Click on the newest picture, again if the gallery was drawn anew in that moment."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

    def clicked():
        try:
            page.browser.find_element("css selector", "#pictures button").click()
        except (NoSuchElementException, StaleElementReferenceException):
            return False
        return True
    until(clicked)


def make(page, **values):
    """Fill in, make, wait for the picture → its array"""
    before = page.shown()
    page.fill(**values)
    page.of("make").click()
    source = until(lambda: (shown := page.shown()) != before and "/api/pictures/" in shown and shown)
    return np.asarray(Image.open(io.BytesIO(page.server.get(source))))
