"""A report of one picture: complete in one file, safe, true, and usable in a browser."""
import base64
import contextlib
import io
import json
import re
import shlex
import types

import numpy as np
import pytest
from PIL import Image

import npdiffusion
from npdiffusion.command import cli, inside
from npdiffusion.diffusion import samplers
from npdiffusion.errors import UserError
from npdiffusion.pictures import images
from npdiffusion.study import arithmetic, colours, leaving_out, looking
from npdiffusion.study.making import resolved_for
from npdiffusion.study.report import contents, page
from tests import pairs
from tests.browser import open_browser
from tests.differences import agree
from tests.fake_pipeline import files
from tests.processes import until
from tests.references import random

ODD = "a <b>cat</b> </script><script>document.title='taken'</script> & \"dog\""
SIZE = dict(width=32, height=32)


@pytest.fixture(autouse=True)
def small_models_on_numpy(request):
    """What concerns tiny models needs no compiling."""
    if "report" not in request.fixturenames:
        request.getfixturevalue("on_numpy")


def look(pipeline, prompt=pairs.PROMPT, further=True, **settings):
    found = looking.look_at(pipeline, resolved_for(pipeline, prompt, **dict(steps=3, seed=7, sampler="ddim") | SIZE | settings))
    return looking.finish(pipeline, found) if further else found


def data_of(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


@pytest.fixture(scope="module")
def ours(pair):
    return pair[1]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The file of a report of the embedded model, 20 steps."""
    pipeline = npdiffusion.load()
    found = look(pipeline, "a cat and a rocket", steps=20, sampler="dpm++2m", width=None, height=None)
    text = page(pipeline, found, "npdiffusion")
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


# ---- the arithmetic of a step

@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_the_arithmetic_of_every_sampler_is_what_its_code_does(name):
    plan = pairs.SCHEDULE.plan(name, 6, eta=0.5)
    x, draws = random(4, 5, seed=1).astype(float), iter(range(100))
    states, denoised, noises = {0: x}, {}, {}

    def denoise(x, level):
        denoised[len(denoised)] = np.tanh(x)
        return denoised[len(denoised) - 1]

    def noise():
        noises[len(noises)] = random(4, 5, seed=10 + next(draws)).astype(float)
        return noises[len(noises) - 1]

    for number, (state, _) in enumerate(plan.sample(denoise, x, noise), start=1):
        states[number] = state
    steps, arrays = arithmetic.steps(plan), {"x": states, "D": denoised, "z": noises}
    assert len(steps) == len(plan) and steps[-1].calls[-1] == len(denoised) - 1
    for step in steps:
        found = sum(factor * arrays[kind][number] for kind, number, factor in step.terms)
        agree("study", f"arithmetic of {name}", found, states[step.number], 1e-10, relative=True)


def test_a_step_with_noise_knows_how_large_it_is():
    first, *_, last = arithmetic.steps(pairs.SCHEDULE.plan("ddpm", 5))
    (_, a, b), *_ = pairs.SCHEDULE.plan("ddpm", 5).steps
    assert first.noise == pytest.approx(np.sqrt((1 - b) / (1 - a) * (1 - a / b))) and last.noise == 0


@pytest.mark.parametrize("settings", [
    dict(sampler="heun"), dict(sampler="pndm"), dict(sampler="unipc", steps=6), dict(guidance_scale=1),
    dict(init_image=Image.new("RGB", (32, 32), "red"), strength=0.7), dict(hires=1.5)],
    ids=", ".join)
def test_a_report_adds_up_whatever_the_picture_is_made_of(settings, ours):
    found = look(ours, further=False, **settings)
    assert len(found.sums) == found.resolved.planned
    agree("study", "states from the arithmetic of steps", max(row["relative"] for row in found.sums), 0, 1e-5)
    assert all(check["fine"] for check in contents.checks(found, "float32"))


def test_noise_that_is_added_has_the_deviation_that_is_said(ours):
    found = look(ours, further=False, sampler="euler_a", width=128, height=128)
    assert [row["rest"] for row in found.sums[:-1]] == pytest.approx([1, 1], abs=0.06) and found.sums[-1]["difference"] < 1e-5


def test_predictions_are_guided_to_the_estimate_that_is_shown(ours):
    found = look(ours, further=False, guidance_scale=3.0)
    for seen in found.seen:
        guided = seen.without + 3 * (seen.given - seen.without)
        agree("study", "x̂₀ of the predictions", seen.x0, (seen.x - seen.sigma * guided) / seen.alpha, 1e-4, relative=True)
        assert seen.norms["added"] == pytest.approx(np.sqrt(np.mean((seen.given - seen.without) ** 2)), rel=1e-5)


# ---- each word left out

def test_words_are_left_out_one_by_one_and_tags_are_not():
    assert leaving_out.shorter("a (red:1.3) cat <lora:my cat:0.5> BREAK 3 d'oh") == [
        ("a", "(red:1.3) cat <lora:my cat:0.5> BREAK 3 d'oh"), ("red", "a (:1.3) cat <lora:my cat:0.5> BREAK 3 d'oh"),
        ("cat", "a (red:1.3) <lora:my cat:0.5> BREAK 3 d'oh"), ("d'oh", "a (red:1.3) cat <lora:my cat:0.5> BREAK 3")]


def test_the_picture_without_a_word_is_that_of_the_shorter_prompt(ours):
    found = look(ours, "red apple")
    expected, = ours.generate("apple", steps=3, seed=7, sampler="ddim", progress=False, **SIZE)
    assert [each.word for each in found.without] == ["red", "apple"] and found.same is True
    assert np.array_equal(np.asarray(found.without[0].image), np.asarray(expected))
    change = np.abs(np.asarray(expected, float) - np.asarray(found.image, float)).mean()
    assert found.without[0].change == pytest.approx(change, rel=1e-4) and change > 0


def test_further_pictures_are_left_out_with_a_note_where_they_would_take_long(ours, monkeypatch):
    monkeypatch.setattr(looking, "MOST_WORK", 1)
    found = look(ours)
    assert found.same is None and found.without == [] and "isn't made once more" in found.notes[-1]
    assert data_of(page(ours, found))["without"] == []


# ---- the file

def test_a_report_is_one_file_that_asks_for_nothing(report):
    text = report.read_text(encoding="utf-8")
    assert len(text) < 5_000_000
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert {re.split("[;,#]", link)[0] for link in links} == {"data:image/webp", ""}
    assert {*re.findall(r"https?://[^\s\"'<]+", text)} == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text and "{{" not in text


def test_texts_are_shown_and_not_run(ours):
    text = page(ours, look(ours, ODD, negative_prompt=ODD, further=False), f"npdiffusion {ODD}")
    assert text.count("<script") == 2 and text.count("</script>") == 2 and "<b>cat" not in text
    assert data_of(text)["prompt"] == ODD


def test_maps_keep_their_digits_as_bytes(ours):
    found = look(ours, further=False)
    for level, stored in zip(found.maps.levels, contents.maps(found.maps)["levels"]):
        values = (np.frombuffer(base64.b64decode(stored["bytes"]), np.uint8) / 255.0) ** 2
        agree("study", "maps as bytes", values.reshape(level.shape), level, 0.004)


def test_maps_beyond_the_limit_are_averaged_over_steps(ours, monkeypatch):
    found = look(ours, further=False)
    monkeypatch.setattr(contents, "MOST_MAPS", found.maps.levels[0].size)
    stored = contents.maps(found.maps)
    assert stored["spans"] == [(1, 2), (3, 3)]
    half = contents.halved(found.maps.levels[0])
    agree("study", "halved maps", half[0], found.maps.levels[0][:2].mean(axis=0), 1e-6)


def test_of_many_steps_some_are_shown_and_all_are_counted(ours, monkeypatch):
    monkeypatch.setattr(looking, "MOST_SHOWN", 2)
    found = look(ours, further=False, steps=5)
    data = data_of(page(ours, found))
    assert [row["step"] for row in data["steps"] if "x_picture" in row] == [3, 5]
    assert len(data["steps"]) == len(data["sums"]) == 5
    assert any("of 5 steps, 2 are shown" in note for note in data["notes"])


def test_states_beyond_the_limit_are_not_compared(ours, monkeypatch):
    monkeypatch.setattr("npdiffusion.study.steps.MOST_BYTES", 4000)
    data = data_of(page(ours, look(ours, further=False)))
    assert data["sums"][0]["difference"] is not None and data["sums"][-1]["difference"] is None


def test_the_colour_map_grows_evenly_lighter():
    srgb = colours.colour_map().astype(float) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    lightness = np.cbrt(linear @ np.linalg.inv(colours.RGB).T) @ np.linalg.inv(colours.LMS).T[:, :1]
    steps = np.diff(lightness[:, 0])
    assert steps.min() > 0 and lightness[-1, 0] - lightness[0, 0] > 0.75
    assert np.abs(lightness[:, 0] - np.linspace(*colours.LIGHTNESS, 256)).max() < 0.02


# ---- the command

@pytest.fixture
def at_the_command(ours, monkeypatch, tmp_path, on_numpy):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(npdiffusion, "load", lambda *arguments, **settings: ours)
    return ["a red apple", "--steps", "2", "-s", "3", "-W", "32", "-H", "32", "--sampler", "ddim", "-o", "a.png"]


def test_the_command_writes_a_report_beside_the_same_picture(at_the_command, tmp_path, capsys):
    assert cli.main(at_the_command) == 0
    assert cli.main([*at_the_command, "--inside", "report"]) == 0
    assert capsys.readouterr().out.splitlines() == ["a.png", "a-2.png", "report.html"]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "a-2.png").read_bytes()
    data = data_of((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert data["command"].startswith("npdiffusion 'a red apple' --steps 2 --sampler ddim")
    assert cli.main([*at_the_command, "--inside", "report", "-b", "2"]) == 0
    assert {"report-2.html", "report-3.html"} <= {*files(tmp_path)}


def test_the_command_of_a_report_makes_the_picture_again(at_the_command, tmp_path, monkeypatch):
    cli.main([*at_the_command, "--inside", "report", "-n", "green", "--eta", "0.5", "--clip-skip", "1"])
    line = shlex.split(data_of((tmp_path / "report.html").read_text(encoding="utf-8"))["command"])
    assert cli.main([*line[1:], "-o", "again.png"]) == 0
    assert np.array_equal(np.asarray(Image.open("a.png")), np.asarray(Image.open("again.png")))


def test_the_command_of_a_report_names_every_picture_and_file():
    request = types.SimpleNamespace(prompt="a cat", negative_prompt="dogs", **dict.fromkeys(inside.PICTURES))
    request.init_image, request.control_image = "my cat.png", ("edges.png", "pose.png")
    options = types.SimpleNamespace(**dict.fromkeys(inside.FILES) | {"model": "xl/", "control": ["a/", "b/"]})
    resolved = types.SimpleNamespace(request=request, settings=lambda: {"seed": 0, "original_size": (96, 40), "eta": 0.5})
    found = shlex.split(inside.command_line(resolved, options))
    assert found == ["npdiffusion", "a cat", "--negative-prompt", "dogs", "--seed", "0", "--original-size", "40x96",
                     "--eta", "0.5", "--init-image", "my cat.png", "--control-image", "edges.png", "--control-image",
                     "pose.png", "--model", "xl/", "--control", "a/", "--control", "b/"]


@pytest.mark.parametrize(("name", "message"), [
    ("nowhere/report.html", "there is no folder nowhere"), (".", "is a folder"), ("report.pdf", "should end in .html")])
def test_a_name_that_no_report_can_have_is_found_before_loading(name, message, pipeline, capsys):
    assert cli.main(["a cat", "--inside", name]) == 1
    assert message in capsys.readouterr().err and not pipeline.loaded


def test_a_report_that_cannot_be_written_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(images, "_named", full)
    with pytest.raises(UserError, match=r"the file can't be written \(No space left"):
        images.save_text("x", tmp_path / "report.html")
    assert files(tmp_path) == []


# ---- in a browser

@contextlib.contextmanager
def opened(path, folder, width=1200, **options):
    """A browser that shows a file, when its script has drawn the maps."""
    with open_browser(folder, width, **options) as browser:
        browser.get(path.as_uri())
        until(lambda: browser.execute_script("return state.maps !== null"))
        yield browser


@pytest.mark.parametrize(("width", "theme"), [(1200, "light"), (1200, "dark"), (380, "light")])
def test_a_report_opens_without_a_word_of_complaint(report, tmp_path, width, theme):
    with opened(report, tmp_path, width, dark=theme == "dark") as page:
        assert page.find_element("id", "prompt").text == "a cat and a rocket"
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        shot = np.asarray(Image.open(io.BytesIO(page.get_screenshot_as_png())).convert("RGB"))
        assert (shot.mean() < 100) == (theme == "dark") and shot.std() > 20
        assert page.execute_script("return performance.getEntriesByType('resource').map(each => each.name)"
                                   ".filter(name => !name.startsWith('data:'))") == []
        assert page.get_log("browser") == []


def test_sliders_words_and_places_answer_to_keys_and_pointer(report, tmp_path):
    with opened(report, tmp_path) as page:
        get = lambda name: page.find_element("id", name)
        right = "\ue014"
        before = get("x0").get_attribute("src"), get("sum").text
        get("step").send_keys(right)
        assert get("step-number").text == "2 of 20" and get("step").get_attribute("aria-valuetext").startswith("step 2 of 20")
        assert (get("x0").get_attribute("src"), get("sum").text) != before
        place = get("place").text
        get("heat").send_keys(right)
        assert place.startswith("Row 5 of 8, column 5 of 8") and get("place").text.startswith("Row 5 of 8, column 6 of 8")
        page.execute_script("arguments[0].scrollIntoView()", get("heat"))
        from selenium.webdriver import ActionChains
        ActionChains(page).move_to_element_with_offset(get("heat"), -100, 0).perform()
        ranked = get("ranks").text.splitlines()
        assert "column 3" in get("place").text and "cat" in ranked[:6]
        drawn = page.execute_script("return document.getElementById('heat').toDataURL()")
        page.execute_script("document.querySelectorAll('#choose input')[2].click()")
        assert page.execute_script("return document.getElementById('heat').toDataURL()") != drawn
        assert "cat" in get("heat").get_attribute("aria-label")
        for control, value in (("span", "3"), ("level", "1"), ("head", "2"), ("norm", "own")):
            drawn = page.execute_script("return document.getElementById('heat').toDataURL()")
            page.execute_script("const it = document.getElementById(arguments[0]); it.value = arguments[1];"
                                "it.dispatchEvent(new Event('change'))", control, value)
            assert page.execute_script("return document.getElementById('heat').toDataURL()") != drawn, control
        assert page.get_log("browser") == []


def test_maps_on_the_page_are_those_of_python(report, tmp_path):
    data = data_of(report.read_text(encoding="utf-8"))
    with opened(report, tmp_path) as page:
        found = np.array(page.execute_script("return [...state.maps]")).reshape(len(data["words"]), 8, 8)
    assert [word["text"] for word in data["words"]][2] == "cat"
    agree("study", "maps in the browser", found.mean(axis=(1, 2)), [word["share"] for word in data["words"]], 2e-3)


def test_the_table_of_layers_unfolds_like_the_models_tree(report, tmp_path):
    with opened(report, tmp_path) as page:
        rows = lambda: page.execute_script("return [...document.querySelectorAll('#layers tbody tr')]"
                                           ".filter(row => !row.hidden).map(row => row.cells[0].textContent)")
        assert rows() == ["text_encoder", "unet", "vae"]
        press = lambda name: page.execute_script("[...document.querySelectorAll('#layers button')].find(each => "
                                                 "each.textContent === arguments[0]).click()", name)
        press("unet")
        assert {"conv_in", "down_blocks", "mid_block", "up_blocks", "conv_out"} <= {*rows()}
        press("mid_block")
        assert "resnets" in rows()
        press("unet")
        assert rows() == ["text_encoder", "unet", "vae"]


def test_a_prompt_with_a_script_is_shown_in_the_browser(ours, tmp_path):
    path = tmp_path / "odd.html"
    path.write_text(page(ours, look(ours, ODD, steps=1), ODD), encoding="utf-8")
    with opened(path, tmp_path / "profile") as browser:
        assert browser.find_element("id", "prompt").text == ODD and browser.title != "taken"
        assert [each.text for each in browser.find_elements("css selector", "#norms .tick")] == ["1"]
        assert browser.get_log("browser") == []
