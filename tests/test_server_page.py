"""The page in a real browser: typed, made, seen, cancelled, painted, read back; and what it is made of."""
import base64
import importlib.resources
import re

import numpy as np
import pytest
from PIL import Image

from tests.browser import Page, first_picture, make, open_browser
from tests.processes import until
from tests.served import served

PAGE = importlib.resources.files("npdiffusion.server").joinpath("page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory.mktemp("server") / "pictures") as found:
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def page(browser, server):
    found = Page(browser, server)
    found.run("localStorage.clear()")
    found.open()
    yield found
    assert [line["message"] for line in browser.get_log("browser")] == []             # nothing was refused by the policy


def test_what_is_typed_is_made_with_a_preview_and_a_bar(page):
    page.fill(prompt="a red apple", steps=120, seed=3)
    page.of("make").click()
    until(lambda: page.shown().startswith("data:image/webp"))
    until(lambda: float(page.run("return document.querySelector('.bar').getAttribute('aria-valuenow')")) > 5)
    assert re.search(r"step \d+ of 120", page.of("where").text)
    until(lambda: "/api/pictures/" in page.shown())
    newest = page.server.get("/api/pictures?count=1")["pictures"][0]
    assert newest["prompt"] == "a red apple" and newest["seed"] == 3 and newest["settings"]["steps"] == 120


def test_a_picture_is_cancelled(page):
    page.fill(prompt="a cat", steps=900)
    page.of("make").click()
    until(lambda: re.search(r"step [1-9]", page.of("where").text))
    page.of("cancel").click()
    until(lambda: page.of("said").text == "Cancelled.")
    assert not page.server.engine.active() and not page.of("working").is_displayed()


def test_a_mask_is_painted_and_the_rest_stays_as_it_was(page, tmp_path):
    from selenium.webdriver import ActionChains
    Image.radial_gradient("L").resize((128, 128)).convert("RGB").save(tmp_path / "start.png")
    page.of("file").send_keys(str(tmp_path / "start.png"))
    canvas = until(lambda: page.of("mask").is_displayed() and page.run("return document.getElementById('mask').width") == 128
                   and page.of("mask"))
    page.run("document.getElementById('mask').scrollIntoView({block: 'center'})")
    width = canvas.size["width"]
    ActionChains(page.browser).move_to_element_with_offset(canvas, -width // 4, 0).click_and_hold().move_by_offset(
        0, width // 8).move_by_offset(0, -width // 4).release().perform()
    made = make(page, prompt="a cat", steps=3, seed=1)
    before = np.asarray(Image.open(tmp_path / "start.png"))
    assert np.array_equal(made[:, 80:], before[:, 80:]) and not np.array_equal(made[:, :60], before[:, :60])
    assert page.value("strength") == "1"


def test_a_mask_can_be_painted_by_keyboard(page, tmp_path):
    Image.new("RGB", (128, 128), "red").save(tmp_path / "start.png")
    page.of("file").send_keys(str(tmp_path / "start.png"))
    canvas = until(lambda: page.of("mask").is_displayed() and page.of("mask"))
    canvas.send_keys(" ", "\ue014", "\ue014", " ")                   # arrows to the right
    painted = page.run("return document.getElementById('mask').getContext('2d').getImageData(64, 64, 1, 1).data[3]")
    assert painted == 255


def test_settings_are_read_back_from_the_gallery_and_from_a_dropped_picture(page):
    make(page, prompt="a moon", negative_prompt="blue", steps=4, seed=17, guidance_scale=3)
    content = page.server.get(page.shown())
    page.of("reset").click()
    page.fill(prompt="something else")
    assert page.value("seed") == ""
    first_picture(page)
    page.browser.find_element("css selector", "#look .again").click()
    names = "prompt", "negative_prompt", "steps", "seed", "guidance_scale"
    assert [page.value(name) for name in names] == ["a moon", "blue", "4", "17", "3"]
    page.of("reset").click()
    page.fill(prompt="something else")
    page.run("""
        const bytes = Uint8Array.from(atob(arguments[0]), each => each.charCodeAt(0)), data = new DataTransfer();
        data.items.add(new File([bytes], "a.png", {type: "image/png"}));
        const target = document.querySelector("#over [data-what=settings]");
        document.dispatchEvent(new DragEvent("dragenter", {dataTransfer: data}));
        target.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
    """, base64.b64encode(content).decode())
    until(lambda: page.value("prompt") == "a moon")
    assert [page.value(name) for name in names] == ["a moon", "blue", "4", "17", "3"]


def test_a_picture_is_looked_into_word_by_word(page):
    make(page, prompt="a red apple", steps=3, seed=4)
    first_picture(page)
    page.browser.find_element("css selector", "#look .inside").click()
    words = until(lambda: page.browser.find_elements("css selector", ".map-words button"))
    assert [word.text for word in words] == ["a", "red", "apple"]
    words[2].click()
    shown = page.browser.find_element("css selector", "#look .map")
    until(lambda: shown.is_displayed() and page.run("return document.querySelector('#look .map').naturalWidth"))
    page.browser.find_element("css selector", "#look .close").click()


def test_the_whole_report_of_a_picture_opens_beside_the_page(page):
    make(page, prompt="a red apple", steps=3, seed=4)
    first_picture(page)
    page.browser.find_element("css selector", "#look .report").click()
    link, = until(lambda: page.browser.find_elements("css selector", "#look .said a"))
    before = page.browser.current_window_handle
    link.click()
    report, = until(lambda: {*page.browser.window_handles} - {before})
    page.browser.switch_to.window(report)
    until(lambda: page.of("command").is_displayed() or page.browser.title)
    assert "Inside “a red apple”" in page.browser.title and page.browser.find_elements("css selector", "img, canvas, svg")
    page.browser.close()
    page.browser.switch_to.window(before)
    page.browser.find_element("css selector", "#look .close").click()


def test_tokens_are_counted_as_one_types(page):
    place = page.of("make").rect
    page.fill(prompt="an owl")
    until(lambda: "of 75 tokens" in page.of("tokens").text)
    assert page.of("make").rect == place                 # or a click that comes just then would miss it
    page.fill(prompt="a zeppelin")
    until(lambda: "of 75 tokens" in page.of("tokens").text and "zeppelin" in page.of("tokens").text)


def test_a_page_that_is_opened_again_has_what_was_typed_and_finds_its_picture(page):
    page.fill(prompt="an owl", steps=100)
    page.of("make").click()
    until(lambda: page.server.engine.now)
    page.open()
    assert page.value("prompt") == "an owl" and page.value("steps") == "100"
    until(lambda: "/api/pictures/" in page.shown())      # whether it was still at work or done by then


def test_what_is_wrong_is_said_on_the_page(page):
    page.fill(prompt="a cat", seed="x")
    page.of("make").click()
    until(lambda: "whole number" in page.of("said").text or page.run("return !document.getElementById('seed').validity.valid"))
    page.fill(seed="1", steps="20")
    page.run("const box = document.getElementById('width'); box.removeAttribute('step'); box.value = 100;")
    page.of("make").click()
    until(lambda: "multiple of 8" in page.of("said").text)
    page.browser.get_log("browser")                      # of the answer 400


def test_all_can_be_reached_by_keyboard(page):
    seen = []
    page.run("document.getElementById('prompt').focus()")
    for _ in range(30):
        seen.append(page.run("return document.activeElement.id || document.activeElement.tagName"))
        page.browser.switch_to.active_element.send_keys("\ue004")       # Tab
    assert {"prompt", "negative_prompt", "make", "count", "steps", "sampler", "seed", "zone", "reset"} <= {*seen}
    page.fill(prompt="a star", steps=2, seed=1)
    before = page.shown()
    page.of("prompt").send_keys("\ue009\ue007")          # Ctrl+Enter
    until(lambda: "/api/pictures/" in page.shown() and page.shown() != before)


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_narrow_screen_in_dark_and_light(server, tmp_path, dark):
    with open_browser(tmp_path, 360, 740, dark) as browser:
        page = Page(browser, server)
        page.fill(prompt="a very long prompt " * 10)
        assert page.run("return document.documentElement.scrollWidth") == 360
        colours = [page.run(f"return getComputedStyle(document.documentElement).{name}")
                   for name in ("color", "backgroundColor")]
        text, ground = (np.mean([int(each) for each in re.findall(r"\d+", colour)[:3]]) for colour in colours)
        assert (text > ground) == dark and abs(text - ground) > 120


def test_the_page_is_one_file_that_loads_nothing_from_elsewhere():
    assert len(PAGE.encode()) < 60_000
    assert re.findall(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[\w.-]+\.\w+", PAGE) == []
    assert not re.search(r"\b(?:src|href)=[\"'](?!data:)", PAGE) and "innerHTML" not in PAGE and "eval(" not in PAGE
    assert not re.search(r"<[^>]+\s(?:style|on\w+)=", PAGE)               # the policy would refuse them


def test_every_element_that_the_script_asks_for_is_there():
    asked = {*re.findall(r"\$\(\"([\w-]+)\"\)", PAGE)}
    assert len(asked) > 30 and asked <= {*re.findall(r"\bid=\"([\w-]+)\"", PAGE)}
