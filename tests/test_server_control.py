"""Pictures that are led by others, asked of the server: ControlNets, IP- and T2I-Adapters, by all of its interfaces."""
import base64
import io
import sqlite3

import numpy as np
import pytest
from PIL import Image

import npdiffusion
from npdiffusion.command import cli
from npdiffusion.pictures import maps
from npdiffusion.server import leading
from npdiffusion.server.job import Job
from npdiffusion.server.reading import Refused
from npdiffusion.server.sdapi import fresh_options
from npdiffusion.server.sdapi_control import MODULES
from npdiffusion.server.sdapi_fields import read_fields
from npdiffusion.server.store import NAME, Store
from tests import controlnets, pairs
from tests.browser import Page, make, open_browser
from tests.processes import until
from tests.served import png, served

SETTINGS = {"steps": 3, "seed": 7, "width": 48, "height": 32, "guidance_scale": 5}
FIELDS = {"prompt": "a cat", "steps": 3, "seed": 7, "width": 48, "height": 32, "cfg_scale": 5}
PICTURE = controlnets.picture()       # 48 × 32


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """model/ and led/: v11_canny/, depth.safetensors, sketch/, looks.safetensors"""
    place = controlnets.write_all(tmp_path_factory.mktemp("led"), pairs.make_theirs())
    PICTURE.save(place / "picture.png")
    return place


@pytest.fixture(scope="module")
def led(place):
    """A server with them"""
    model = str(place / "model")
    with served(place / "pictures", loaders=lambda name, **leading: npdiffusion.load(model, **leading), model=model,
                control_dir=str(place / "led")) as server:
        yield server


def made(server, settings):
    """What /api makes"""
    job = server.post("/api/jobs", {"prompt": "a cat"} | SETTINGS | settings)
    done = server.finished(job)
    assert done["state"] == "done", done
    number, = done["pictures"]
    return server.get(f"/api/pictures/{number}.png")


def commands(place, tmp_path, *options):
    """The same by the command: the file's content"""
    words = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert cli.main(["a cat", "-m", f"{place}/model", "-o", f"{tmp_path}/out.png", *words, *options]) == 0
    return (tmp_path / "out.png").read_bytes()


def a_unit(**fields):
    """What webuiapi sends of a ControlNet"""
    return {"image": png(PICTURE), "mask": None, "module": "none", "model": "v11_canny", "weight": 1.0, "low_vram": False,
            "resize_mode": "Resize and Fill", "processor_res": 512, "threshold_a": 64, "threshold_b": 64, "guidance_start": 0.0,
            "guidance_end": 1.0, "control_mode": "Balanced", "pixel_perfect": False, "hr_option": "Both",
            "enabled": True} | fields


def txt2img(server, *units, **fields):
    status, _, answer = server.call("POST", "/sdapi/v1/txt2img", FIELDS | {
        "alwayson_scripts": {"controlnet": {"args": list(units)}}} | fields)
    assert status == 200, answer
    return base64.b64decode(answer["images"][0])


def check(found, server, settings):
    """A picture of that interface is what /api makes with these settings beside the interface's own defaults"""
    theirs = read_fields(FIELDS, False, fresh_options())[0].given()
    assert np.array_equal(pixels(found), pixels(made(server, theirs | settings)))


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)))


# ---- the same pictures

@pytest.mark.parametrize(("asked", "options"), [
    ({"control": ["v11_canny"], "control_from": "canny:50-150", "control_scale": 0.8, "control_end": 0.9},
     ["--control", "{}/led/v11_canny", "--control-image", "{}/picture.png", "--control-from", "canny:50-150", "--control-scale",
      "0.8", "--control-end", "0.9"]),
    ({"control": ["v11_canny", "depth"], "control_scale": [0.8, 0.5], "guess_mode": True},
     ["--control", "{}/led/v11_canny", "--control", "{}/led/depth.safetensors", "--control-image", "{}/picture.png",
      "--control-image", "{}/picture.png", "--control-scale", "0.8", "--control-scale", "0.5", "--guess-mode"]),
    ({"ip_adapter": "looks", "ip_scale": 0.6}, ["--ip-adapter", "{}/led/looks.safetensors", "--ip-image", "{}/picture.png",
                                                "--ip-scale", "0.6"]),
    ({"t2i_adapter": "sketch", "t2i_end": 0.7}, ["--t2i-adapter", "{}/led/sketch", "--t2i-image", "{}/picture.png", "--t2i-end",
                                                 "0.7"])])
def test_a_picture_that_is_led_is_the_commands_bit_for_bit(led, place, tmp_path, asked, options):
    kind, = leading.PICTURES.keys() & asked.keys()
    picture = [png(PICTURE)] * len(asked["control"]) if kind == "control" else png(PICTURE)
    plain, found = made(led, {}), made(led, asked | {leading.PICTURES[kind]: picture})
    assert found == commands(place, tmp_path, *(word.format(place) for word in options)) and not np.array_equal(
        pixels(found), pixels(plain))


def test_a_unit_of_the_extension_is_our_own_setting(led):
    for unit, ours in (
            (a_unit(), {}),
            (a_unit(module="canny", weight=0.8, guidance_end=0.9), {"control_from": "canny:64-64", "control_scale": 0.8,
                                                                    "control_end": 0.9}),
            (a_unit(module="scribble_xdog", threshold_a=-1), {"control_from": "scribble:32"}),
            (a_unit(module="tile_resample"), {"control_from": "tile:1"}),                  # 64 is none of its numbers
            ({"input_image": png(PICTURE), "model": "v11_canny [d14c016b]", "guidance": 0.8, "lowvram": True,
              "guessmode": False}, {"control_end": 0.8}),
            ({"image": {"image": png(PICTURE), "mask": None}, "model": "v11_canny", "module": None}, {})):
        check(txt2img(led, unit), led, {"control": ["v11_canny"], "control_image": png(PICTURE)} | ours)
    check(txt2img(led, {"image": png(PICTURE), "model": "looks", "module": "ip-adapter-auto", "weight": 0.6}), led,
          {"ip_adapter": "looks", "ip_image": png(PICTURE), "ip_scale": 0.6})
    check(txt2img(led, a_unit(model="sketch", guidance_end=0.7)), led,
          {"t2i_adapter": "sketch", "t2i_image": png(PICTURE), "t2i_end": 0.7})


def asked(*units, leaders, image_to_image=False, **fields):
    return read_fields(FIELDS | {"alwayson_scripts": {"ControlNet": {"args": list(units)}}} | fields, image_to_image,
                       fresh_options(), leaders)


def test_a_picture_of_another_shape_is_placed_as_the_mode_says(led):
    known, wide = led.engine.catalogue.leaders, controlnets.picture(width=96)
    for mode, size in ((0, (48, 32)), ("Crop and Resize", (96, 32)), (2, (48, 32)), ("Scale to Fit (Inner Fit)", (96, 32))):
        request, *_ = asked(a_unit(image=png(wide), resize_mode=mode, module="invert"), leaders=known)
        assert request.control_image[0].size == size
    request, *_ = asked(a_unit(image=png(wide), module="canny", threshold_a=20, threshold_b=40), leaders=known)
    inside = maps.make("canny:20-40", wide.resize((48, 16), Image.Resampling.LANCZOS))
    filled = np.asarray(request.control_image[0])
    assert request.control_from == ("none",) and np.array_equal(filled[8:24], np.asarray(inside))
    assert len(np.unique(filled[:8])) == 1                          # the border's own level


def test_a_unit_without_an_image_takes_the_picture_that_is_started_from(led):
    request, *_ = asked({"model": "v11_canny"}, leaders=led.engine.catalogue.leaders, image_to_image=True,
                        init_images=[png(PICTURE)])
    assert np.array_equal(np.asarray(request.control_image[0]), np.asarray(PICTURE))


@pytest.mark.parametrize(("unit", "said"), [
    ({"module": "openpose_full"}, "module 'openpose_full' isn't here"), ({"model": "None"}, "without a model"),
    ({"model": "../v11_canny"}, "no ControlNet '../v11_canny' here .*did you mean v11_canny"),
    ({"image": ""}, "without an image"),
    ({"image": "/etc/passwd"}, "not followed"), ({"control_mode": 1}, "control_mode is offered as"),
    ({"resize_mode": "Tile"}, "resize_mode 'Tile'"), ({"advanced_weighting": [1.0]}, "advanced_weighting isn't offered"),
    ({"mask": "aaaa"}, "mask isn't offered"), ({"threshold_a": "x", "module": "canny"}, "threshold_a: a number"),
    ({"threshold_a": 10**400, "module": "canny"}, "threshold_a: a number"),
    ({"weight": 20}, "weight"), ({"model": "looks", "module": "canny"}, "module 'canny' with an IP-Adapter isn't offered"),
    ({"model": "sketch", "guidance_start": 0.3}, "guidance_start and guidance_end with a T2I-Adapter")])
def test_what_a_unit_can_not_ask_for_is_refused_by_name(led, unit, said):
    with pytest.raises(npdiffusion.UserError, match=said):
        asked(a_unit(**unit), leaders=led.engine.catalogue.leaders)


def test_units_that_are_switched_off_ask_for_nothing_and_the_rest_is_noted(led):
    known = led.engine.catalogue.leaders
    request, _, notes, _, found = asked(a_unit(enabled=False, module="openpose"), False, leaders=known)
    assert request.control_image is None and found == leading.NONE and not notes
    unit = a_unit(module="canny", processor_res=768, threshold_a=80.4, unheard=3, control_mode=2)
    *_, notes, _, _ = asked(unit, leaders=known)
    for word in "processor_res", "80 in place of 80.4", "unheard has no effect", "guess mode":
        assert any(word in note for note in notes), word
    looks = a_unit(model="looks", weight=0.4), a_unit(model="looks", weight=0.6)
    request, *_, found = asked(*looks, leaders=known)
    assert request.ip_scale == (0.4, 0.6) and len(request.ip_image) == 2 and found == leading.Led((), ("looks", "looks"))
    with pytest.raises(Refused, match="at most 4"):
        asked(*[a_unit()] * 5, leaders=known)
    with pytest.raises(npdiffusion.UserError, match=r"no ControlNet .*\(--control-dir names the server's folder of them\)"):
        asked(a_unit(), leaders={})


def test_openais_interface_takes_them_by_our_names(led):
    status, _, answer = led.call("POST", "/v1/images/generations", {
        "prompt": "a cat", "size": "48x32", "steps": 3, "seed": 7, "guidance_scale": 5, "control": ["v11_canny"],
        "control_image": [png(PICTURE)]})
    assert status == 200, answer
    found = pixels(base64.b64decode(answer["data"][0]["b64_json"]))
    assert np.array_equal(found, pixels(made(led, {"control": "v11_canny", "control_image": png(PICTURE)})))


# ---- clients of others

def test_webuiapi_finds_and_uses_controlnets(led):
    webuiapi = pytest.importorskip("webuiapi")
    api = webuiapi.WebUIApi(port=led.port, sampler="Euler", steps=3)
    assert api.controlnet_version() == 3 and "v11_canny" in api.controlnet_model_list()
    assert {*api.controlnet_module_list()} == {*MODULES} and "controlnet" in api.get_scripts()["txt2img"]
    unit = webuiapi.ControlNetUnit(image=PICTURE, module="canny", model="v11_canny", weight=0.8, resize_mode="Crop and Resize")
    asked = dict(prompt="a cat", seed=7, width=48, height=32, cfg_scale=5, alwayson_scripts={})     # its default would remember
    found = api.txt2img(**asked, controlnet_units=[unit]).images[0]
    check(base64.b64decode(png(found)), led, {"control": "v11_canny", "control_image": png(PICTURE), "control_scale": 0.8,
                                              "control_from": "canny:64-64"})
    started = api.img2img(images=[PICTURE], **asked, denoising_strength=0.8, controlnet_units=[unit]).images[0]
    assert started.size == (48, 32)
    seen = api.controlnet_detect([PICTURE], module="canny")
    assert np.array_equal(seen.images[0], maps.make("canny:64-64", PICTURE))


def test_sd_backend_client_finds_and_uses_controlnets(led):
    client = pytest.importorskip("sd_backend_client")
    api = client.connect_to_backend(led.url)
    assert api.get_capabilities().controlnet
    models = {each.full_model_name: each for each in api.list_controlnet_models()}
    assert {"v11_canny", "depth", "sketch", "looks", "scribble"} == models.keys()
    canny, = (each for each in api.get_controlnet_preprocessors() if each.name == "canny")
    assert "Canny" in api.get_controlnet_type_categories()
    seen = api.controlnet_preprocessor_preview(PICTURE, None, canny)
    assert np.array_equal(seen.convert("RGB"), maps.make("canny", PICTURE))
    unit = client.ControlNetUnit(image=PICTURE, model=models["v11_canny"], control_strength=0.8,
                                 preprocessor=client.PreprocessorParams(typedef=canny))
    body = client.DiffusionRequestBody(prompt="a cat", steps=3, seed=7, width=48, height=32, controlnet_units=[unit])
    result = api.submit_txt2img(body).wait(60)
    assert result.images[0].size == (48, 32) and not result.control_maps


# ---- what is there, and what is loaded

def test_names_tell_what_is_there_and_paths_are_none(led):
    assert led.get("/api/info")["leaders"] == {
        "depth": ["control", "a ControlNet"], "v11_canny": ["control", "a ControlNet"],
        "looks": ["ip_adapter", "an IP-Adapter"], "sketch": ["t2i_adapter", "a T2I-Adapter"],
        "scribble": ["control", "a ControlNet of the embedded model"]}
    for found, said in (({"control": ["v11_cany"], "control_image": png(PICTURE)}, "did you mean v11_canny?"),
                        ({"control": ["looks"], "control_image": png(PICTURE)}, "no ControlNet 'looks'"),
                        ({"control": ["v11_canny"]}, "1 and 0 are given"),
                        ({"t2i_adapter": "/etc/passwd", "t2i_image": png(PICTURE)}, "no T2I-Adapter")):
        status, _, answer = led.call("POST", "/api/jobs", {"prompt": "x"} | found)
        assert status == 400 and said in answer["error"] and not led.engine.active()


def test_what_does_not_go_with_the_model_is_told_before_it_waits(led, place):
    controlnets.torch_controlnet(cross_attention_dim=1024).save_pretrained(place / "led" / "other")
    led.post("/sdapi/v1/refresh-checkpoints")
    status, _, answer = led.call("POST", "/api/jobs", {"prompt": "x", "control": ["other"], "control_image": png(PICTURE)})
    assert status == 400 and "this ControlNet is for" in answer["error"] and str(place) not in answer["error"]


def test_a_look_into_a_picture_that_was_led_is_refused(led):
    job = led.post("/api/jobs", {"prompt": "a cat", "control": "v11_canny", "control_image": png(PICTURE)} | SETTINGS)
    job = led.finished(job)
    status, _, answer = led.call("POST", f"/api/pictures/{job['pictures'][0]}/look", {})
    assert status == 400 and "from another one" in answer["error"]


def test_what_leads_a_job_outlives_the_server_and_tables_without_it_are_read(tmp_path):
    store, job = Store(tmp_path), Job("a", "api", "m", 1, 5, "x", 1.0, led=leading.Led(("v11_canny", "depth"), ("looks",)))
    store.add(job, "{}")
    assert store.waiting()[0].led == job.led and store.find(job.id).needs == ("m", job.led)
    store.close()
    with sqlite3.connect(tmp_path / NAME) as table:
        table.execute("ALTER TABLE jobs DROP COLUMN led")
    store = Store(tmp_path)
    assert store.find(job.id).led == leading.NONE
    store.close()


# ---- the page

def test_the_page_offers_what_is_there_and_a_picture_is_led(led, place, tmp_path):
    with open_browser(tmp_path / "profile") as browser:
        page = Page(browser, led)
        assert page.of("leading").is_displayed() and page.of("maps").is_displayed() is False
        page.run("document.getElementById('leader').value = 'v11_canny'; document.getElementById('leader').onchange()")
        page.fill(**SETTINGS | {"prompt": "a cat"})
        page.of("make").click()
        until(lambda: page.of("said").text == "v11_canny needs a picture that leads.")
        page.of("lead-file").send_keys(str(place / "picture.png"))
        until(lambda: page.of("lead").is_displayed())
        page.run("document.getElementById('map').value = 'canny'")
        page.fill(**{"lead-scale": 0.8})
        found = make(page, prompt="a cat")
        assert np.array_equal(found, pixels(made(led, {"control": "v11_canny", "control_image": png(PICTURE),
                                                       "control_scale": 0.8, "control_from": "canny"})))
        browser.save_screenshot(str(tmp_path / "led.png"))
        page.of("lead-remove").click()
        page.run("document.getElementById('leader').value = ''; document.getElementById('leader').onchange()")
        assert np.array_equal(make(page, prompt="a cat"), pixels(made(led, {})))
        said = [line["message"] for line in browser.get_log("browser")]
        assert [line for line in said if "/api/tokens" not in line] == []            # refused while a model is loaded
