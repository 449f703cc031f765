"""/sdapi/v1, asked by clients that were not written here, and by requests as other programs send them."""
import base64
import io
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image

from npdiffusion.server import slow_answers
from npdiffusion.server.sdapi import fresh_options
from npdiffusion.server.sdapi_fields import IMAGE_TO_IMAGE, TEXT_TO_IMAGE, read_fields
from npdiffusion.settings import SETTINGS
from tests.processes import until
from tests.served import Gate, png


def picture(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def asked(found, image_to_image=False):
    return read_fields(found, image_to_image, fresh_options())[:4]


# ---- clients of others

def test_webuiapi_makes_pictures_and_finds_its_lists(real):
    webuiapi = pytest.importorskip("webuiapi")
    api = webuiapi.WebUIApi(port=real.port, sampler="Euler a", steps=3)
    result = api.txt2img(prompt="a red apple", negative_prompt="blue", seed=5, width=64, height=64, n_iter=2)
    assert [image.size for image in result.images] == [(64, 64)] * 2 and result.info["all_seeds"] == [5, 6]
    assert result.info["sampler_name"] == "Euler a" and result.info["infotexts"][0].startswith("a red apple\n")
    again = api.img2img(images=[result.images[0]], prompt="a red apple", seed=5, width=64, height=64, denoising_strength=0.5)
    assert again.images[0].size == (64, 64) and "Euler a" in api.util_get_sampler_names()
    masked = api.img2img(images=[result.images[0]], mask_image=Image.new("L", (64, 64), 0), prompt="x", steps=2, seed=1,
                         width=64, height=64, inpaint_full_res=False)
    assert np.array_equal(masked.images[0], result.images[0])             # black: nothing is repainted
    assert api.png_info(result.images[0]).info == result.info["infotexts"][0]
    assert api.util_get_model_names() == ["embedded"] and api.util_get_current_model() == "embedded"
    assert "automatic" in {each["name"] for each in api.get_schedulers()}
    assert api.get_progress()["state"]["job_count"] == 0 and api.interrupt() == {} and api.skip() == {}
    api.set_options(api.get_options() | {"sd_model_checkpoint": "embedded"})
    for name in ("get_cmd_flags", "get_sd_vae", "get_upscalers", "get_latent_upscale_modes", "get_loras", "get_hypernetworks",
                 "get_face_restorers", "get_realesrgan_models", "get_prompt_styles", "get_embeddings", "get_memory",
                 "get_scripts", "refresh_checkpoints"):
        getattr(api, name)()


def test_sd_backend_client_validates_all_answers(real):
    client = pytest.importorskip("sd_backend_client")
    api = client.connect_to_backend(real.url)
    assert type(api).__name__ == "A1111Webservice"
    body = client.DiffusionRequestBody(prompt="a red apple", negative_prompt="blue", steps=3, seed=4, n_iter=2, width=64,
                                       height=64)
    result = api.submit_txt2img(body).wait(60)
    assert len(result.images) == 2 and result.seeds == [4, 5] and not result.control_maps
    assert api.progress_check().progress == 0 and api.get_models() and api.get_samplers()
    for name in ("list_checkpoints", "list_vaes", "list_loras", "list_hypernetworks", "list_samplers", "list_schedulers",
                 "list_upscalers", "get_capabilities", "get_styles", "get_scripts", "get_script_info", "refresh_checkpoints",
                 "refresh_vae", "refresh_loras"):
        getattr(api, name)()


def test_sd_backend_client_ends_a_picture(real):
    client = pytest.importorskip("sd_backend_client")
    api = client.A1111Webservice(real.url)
    handle = api.submit_txt2img(client.DiffusionRequestBody(prompt="a cat", steps=900, seed=4))
    while real.engine.now is None or real.engine.now.step < 2:
        time.sleep(0.02)
    assert 0 < real.get("/sdapi/v1/progress")["progress"] < 1
    handle.cancel()
    until(lambda: not real.engine.active(), 10)


def test_requests_of_open_webui_are_answered(real):
    """Its verification, its change of the model, its request for pictures."""
    options = real.get("/sdapi/v1/options")
    assert real.get("/sdapi/v1/sd-models")[0]["title"] == options["sd_model_checkpoint"] == "embedded"
    assert real.post("/sdapi/v1/options", options | {"sd_model_checkpoint": "embedded"}) is None
    answer = real.post("/sdapi/v1/txt2img", {"prompt": "a cat", "batch_size": 1, "width": 128, "height": 128, "steps": 2})
    assert picture(answer["images"][0]).size == (128, 128) and json.loads(answer["info"])["prompt"] == "a cat"


def test_requests_of_sillytavern_are_answered(real):
    answer = real.post("/sdapi/v1/txt2img", {
        "prompt": "a cat", "negative_prompt": "", "sampler_name": "Euler a", "scheduler": "Karras", "steps": 2, "cfg_scale": 7,
        "width": 64, "height": 64, "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent", "hr_scale": 2,
        "hr_additional_modules": [], "denoising_strength": 0.7, "hr_second_pass_steps": 0, "seed": -1,
        "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic", "forge_additional_modules": []},
        "override_settings_restore_afterwards": True, "clip_skip": 1, "save_images": True, "send_images": True,
        "do_not_save_grid": False, "do_not_save_samples": False})
    assert picture(answer["images"][0]).size == (64, 64)
    newest = real.get("/api/pictures?count=1")["pictures"][0]
    assert newest["seed"] == json.loads(answer["info"])["seed"]          # save_images: it is in the gallery
    for path in ("upscalers", "latent-upscale-modes", "samplers", "schedulers", "sd-models", "options", "progress"):
        assert real.get(f"/sdapi/v1/{path}")


def test_progress_shows_the_picture_that_is_to_be(real):
    found, thread = [], threading.Thread(target=real.post, args=("/sdapi/v1/txt2img", {"prompt": "a cat", "steps": 60}))
    thread.start()
    while thread.is_alive():
        found.append(real.get("/sdapi/v1/progress"))
    shown = [each for each in found if each["current_image"]]
    assert shown and picture(shown[-1]["current_image"]).size == (128, 128)
    assert any(0 < each["progress"] < 1 and each["state"]["sampling_steps"] == 60 for each in found)
    assert real.get("/sdapi/v1/progress?skip_current_image=true")["current_image"] is None


def test_interrupt_and_skip_end_pictures_of_this_interface_alone(fake):
    gate = Gate(fake.pipeline)
    job = fake.post("/api/jobs", {"prompt": "mine", "steps": 1})
    gate.reached.wait(10)
    fake.post("/sdapi/v1/interrupt")
    fake.post("/sdapi/v1/skip")
    gate.event.set()
    assert fake.finished(job)["state"] == "done"


def test_skip_goes_on_with_the_next_picture(real):
    found = []
    thread = threading.Thread(target=lambda: found.append(real.post("/sdapi/v1/txt2img", {
        "prompt": "a cat", "steps": 60, "n_iter": 2, "seed": 1})))
    thread.start()
    while real.engine.now is None or real.engine.now.step < 2:
        time.sleep(0.01)
    real.post("/sdapi/v1/skip")
    thread.join(60)
    assert json.loads(found[0]["info"])["all_seeds"] == [2] and len(found[0]["images"]) == 1


# ---- fields

def test_the_defaults_are_the_web_interfaces():
    request, model, notes, _ = asked({})
    assert (request.steps, request.guidance_scale, request.sampler, request.schedule, request.rng) == (
        50, 7.0, "euler", "discrete", "a1111")
    assert request.seed is None and request.count == 1 and model is None and not notes


@pytest.mark.parametrize(("found", "expected"), [
    ({"sampler_name": "DPM++ 2M"}, {"sampler": "dpm++2m", "schedule": "karras"}),
    ({"sampler_name": "DPM++ 2M", "scheduler": "automatic"}, {"sampler": "dpm++2m", "schedule": "karras"}),
    ({"sampler_name": "DPM++ 2M SDE Exponential"}, {"sampler": "dpm++2m_sde", "schedule": "exponential"}),
    ({"sampler_name": "Euler", "scheduler": "Uniform"}, {"schedule": "discrete", "timestep_spacing": "linspace"}),
    ({"sampler_name": "DDIM", "eta": 1.0}, {"sampler": "ddim", "timestep_spacing": None, "eta": 1.0}),
    ({"sampler_name": "Euler a", "eta": 1.0, "scheduler": "karras"}, {"eta": None, "schedule": "karras"}),
    ({"batch_size": 2, "n_iter": 3, "seed": 4.0}, {"count": 6, "seed": 4}),
    ({"subseed": 3, "subseed_strength": 0.5, "seed": 1}, {"subseed": 3, "subseed_strength": 0.5}),
    ({"override_settings": {"CLIP_stop_at_last_layers": 2, "randn_source": "CPU"}}, {"clip_skip": 1, "rng": "torch"}),
    ({"enable_hr": True, "hr_scale": 1.5, "hr_second_pass_steps": 7, "hr_upscaler": "Lanczos"},
     {"hires": 1.5, "hires_steps": 7, "hires_strength": 0.75, "hires_upscaler": "lanczos"}),
    ({"enable_hr": True, "width": 64, "height": 128, "hr_resize_x": 128}, {"hires": 2.0}),
])
def test_fields_mean_what_they_mean_there(found, expected):
    request, *_ = asked(found)
    assert {name: getattr(request, name) for name in expected} == expected


def test_a_mask_is_read_with_the_defaults_of_the_web_interface():
    image, mask = Image.radial_gradient("L").resize((96, 64)), Image.new("L", (96, 64), 255)
    request, _, notes, _ = asked({"init_images": ["data:image/png;base64," + png(image)], "mask": png(mask), "width": 64,
                                  "height": 64, "inpainting_mask_invert": 1}, True)
    assert (request.padding_mask_crop, request.mask_blur, request.invert_mask, request.strength) == (0, 4, True, 0.75)
    assert request.init_image.size == (96, 64) and any("inpainting_fill" in note for note in notes)
    whole, *_ = asked({"init_images": [png(image)], "width": 64, "height": 64}, True)
    assert whole.init_image.size == (64, 64)              # resize_mode 0 stretches
    cut, *_ = asked({"init_images": [png(image)], "width": 64, "height": 64, "resize_mode": 1}, True)
    assert cut.init_image.size == (96, 64)                # ours is 1: scaled and cut


def test_what_has_no_effect_is_noted():
    _, _, notes, _ = asked({"restore_faces": True, "tiling": False, "styles": ["x"], "s_noise": 1, "s_churn": 2, "unheard": 5,
                            "override_settings": {"eta_noise_seed_delta": 31337}})
    assert sorted(note.split(" has")[0] for note in notes) == [
        "override_settings: eta_noise_seed_delta", "restore_faces", "s_churn", "styles", "unheard"]


@pytest.mark.parametrize(("path", "found", "status", "said"), [
    ("txt2img", {"sampler_name": "Restart"}, 400, "Sampler not found"),
    ("txt2img", {"scheduler": "polyexponential"}, 400, "Scheduler not found"),
    ("txt2img", {"script_name": "X/Y/Z plot"}, 422, "Script not found"),
    ("txt2img", {"alwayson_scripts": {"ControlNet": {"args": [{"enabled": True}]}}}, 422, "ControlNet"),
    ("txt2img", {"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"}, 400, "could not find upscaler"),
    ("txt2img", {"cfg_scale": 1000}, 400, "cfg_scale is 1000"),
    ("txt2img", {"batch_size": 0}, 422, "at least 1"),
    ("txt2img", {"override_settings": {"sd_model_checkpoint": "/etc/passwd"}}, 400, "no model"),
    ("img2img", {}, 404, "Init image not found"),
    ("img2img", {"init_images": ["/etc/passwd"]}, 400, "not followed"),
    ("img2img", {"init_images": ["http://127.0.0.1/a.png"]}, 400, "not followed"),
    ("options", {"sd_model_checkpoint": "../x"}, 400, "no model"),
    ("nothing", {}, 404, "Not Found"),
])
def test_what_is_not_offered_is_refused_by_name(fake, path, found, status, said):
    code, _, answer = fake.call("POST", f"/sdapi/v1/{path}", found)
    assert code == status and said in answer["detail"] and not fake.pipeline.asked


def test_switched_off_scripts_are_passed_over():
    assert asked({"alwayson_scripts": {"ADetailer": {"args": [False]}, "ControlNet": {"args": []}}})[2] == []


def test_every_sampler_and_schedule_that_is_listed_is_taken(fake):
    for each in fake.get("/sdapi/v1/samplers"):
        for kind in fake.get("/sdapi/v1/schedulers"):
            request, *_ = asked({"sampler_name": each["name"], "scheduler": kind["name"]})
            assert [request.sampler] == each["aliases"]
            assert kind["name"] == "automatic" or request.schedule in (None, SETTINGS["schedule"].kind.named(kind["name"]))


def test_every_field_of_the_tables_is_taken_at_its_default():
    for fields, image in ((TEXT_TO_IMAGE, False), (IMAGE_TO_IMAGE, True)):
        given = fields | ({"init_images": [png(Image.new("RGB", (8, 8)))]} if image else {})
        assert asked(given, image)[2] == []


# ---- answers that take long

def test_a_long_picture_sends_white_space_so_that_no_client_gives_up(fake, monkeypatch):
    monkeypatch.setattr(slow_answers, "PATIENCE", 0.05)
    monkeypatch.setattr(slow_answers, "BETWEEN", 0.05)
    fake.pipeline.act = lambda: time.sleep(0.5)
    status, headers, answer = fake.call("POST", "/sdapi/v1/txt2img", {"prompt": "x", "steps": 1})
    assert status == 200 and len(answer["images"]) == 1 and headers["transfer-encoding"] == "chunked"


def test_a_client_that_goes_away_takes_its_picture_along(fake):
    import http.client
    gate = Gate(fake.pipeline)
    fake.post("/api/jobs", {"prompt": "first", "steps": 1})
    gate.reached.wait(10)
    connection = http.client.HTTPConnection("127.0.0.1", fake.port)
    connection.request("POST", "/sdapi/v1/txt2img", json.dumps({"prompt": "vanishes"}), {"content-type": "application/json"})
    while len(fake.engine.turns) < 2:
        time.sleep(0.01)
    connection.close()
    until(lambda: len(fake.engine.turns) == 1, 10)
    gate.event.set()
    assert [each["prompt"] for each in fake.pipeline.asked] == ["first"]


# ---- what a text fills in, and one request by its name

def test_a_text_of_settings_fills_the_fields_that_are_not_given():
    text = ("an owl\nNegative prompt: blue\nSteps: 7, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 3.5, Seed: 9, "
            "Size: 64x72, Clip skip: 2, RNG: CPU, Model: other, Version: v1.10")
    request, _, notes, _ = asked({"infotext": text, "steps": 5, "negative_prompt": None})
    assert (request.prompt, request.negative_prompt, request.steps, request.seed, request.width, request.height) == (
        "an owl", "blue", 5, 9, 64, 72)
    assert (request.sampler, request.schedule, request.guidance_scale, request.clip_skip, request.rng) == (
        "dpm++2m", "karras", 3.5, 1, "torch")
    assert notes == ["infotext: Model has no effect here"]
    hires, *_ = asked({"infotext": "x\nSteps: 7, Sampler: Euler, Seed: 1, Hires upscale: 1.5, Hires steps: 3, "
                                   "Hires upscaler: Latent, Denoising strength: 0.6"})
    assert (hires.hires, hires.hires_steps, hires.hires_strength) == (1.5, 3, 0.6)


def test_the_infotext_of_an_answer_gives_its_picture_again(real):
    first = real.post("/sdapi/v1/txt2img", {"prompt": "a (red:1.2) apple", "negative_prompt": "blue", "steps": 3, "width": 64,
                                            "height": 72, "sampler_name": "DPM++ SDE", "cfg_scale": 4.5, "subseed": 3,
                                            "subseed_strength": 0.25, "override_settings": {"CLIP_stop_at_last_layers": 2}})
    text = json.loads(first["info"])["infotexts"][0]
    assert real.post("/sdapi/v1/txt2img", {"infotext": text})["images"] == first["images"]


def test_one_request_is_asked_for_by_the_name_that_its_client_gave_it(fake):
    gate, found = Gate(fake.pipeline), []
    threads = [threading.Thread(target=lambda name=name: found.append(fake.post("/sdapi/v1/txt2img", {
        "prompt": name, "steps": 1, "force_task_id": f"task({name})"}))) for name in ("one", "two")]
    for number, thread in enumerate(threads, start=1):
        thread.start()
        until(lambda number=number: len(fake.engine.turns) == number)
    gate.reached.wait(10)
    one, two, three = (fake.post("/internal/progress", {"id_task": f"task({name})", "id_live_preview": -1})
                       for name in ("one", "two", "three"))
    assert one["active"] and not one["queued"] and one["progress"] == 1.0 and one["eta"] >= 0
    assert two["queued"] and not two["active"] and two["textinfo"] == "In queue: 1 ahead"
    assert not any(three[name] for name in ("active", "queued", "completed"))
    assert fake.get("/internal/pending-tasks") == {"size": 1, "tasks": ["task(two)"]}
    gate.event.set()
    for thread in threads:
        thread.join()
    done = fake.post("/internal/progress", {"id_task": "task(two)"})
    assert done["completed"] and not done["active"] and len(found) == 2
    assert fake.call("POST", "/sdapi/v1/txt2img", {"force_task_id": ["x"]})[0] == 400


def test_a_picture_at_work_is_shown_once_for_each_step(real):
    thread = threading.Thread(target=real.post, args=("/sdapi/v1/txt2img", {"prompt": "a cat", "steps": 150,
                                                                            "force_task_id": "a"}))
    thread.start()
    first = until(lambda: (found := real.post("/internal/progress", {"id_task": "a"}))["live_preview"] and found)
    assert picture(first["live_preview"].partition(",")[2]).size == (128, 128)
    job = real.engine.called("a")
    job.skipped = True
    thread.join(30)
    assert first["id_live_preview"] > 0 and 0 < first["progress"] < 1
