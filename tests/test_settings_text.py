"""The settings of a picture as text, as AUTOMATIC1111's web interface writes and reads them."""
import json
import re

import pytest
from PIL import Image

from npdiffusion import __version__, settings
from npdiffusion.command import cli
from npdiffusion.diffusion import samplers
from npdiffusion.pictures import settings_text
from npdiffusion.pictures.images import save_png
from npdiffusion.pictures.settings_text import SAMPLERS, parameters, parse_parameters, quote, to_options
from npdiffusion.pictures.text_inside import png_info
from tests.differences import agree

SETTINGS = dict(steps=50, sampler="ddim", schedule="discrete", guidance_scale=7.5, seed=1, width=128, height=64,
                model="v1-5", rng="torch")

# How that program finds the pairs in the last line.
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def pairs(text):
    found = PAIR.findall(text.splitlines()[-1])
    return {key: json.loads(value) if value.startswith('"') else value for key, value in found}


# ---- writing

def test_text_has_prompt_then_settings():
    assert parameters("a red apple", **SETTINGS) == (
        "a red apple\n"
        "Steps: 50, Sampler: DDIM, CFG scale: 7.5, Seed: 1, Size: 128x64, Model: v1-5, RNG: CPU, "
        f"Version: npdiffusion {__version__}")


def test_negative_prompt_has_a_line_of_its_own_if_there_is_one():
    assert parameters("an apple", "blurry", **SETTINGS).splitlines()[1] == "Negative prompt: blurry"
    assert "Negative" not in parameters("an apple", "", **SETTINGS)


def test_karras_schedule_and_strength_are_named_as_there():
    text = parameters("", **{**SETTINGS, "sampler": "dpm++2m", "schedule": "karras"}, strength=0.6)
    found = pairs(text)
    assert found["Sampler"] == "DPM++ 2M"
    assert found["Schedule type"] == "Karras"
    assert found["Denoising strength"] == "0.6"


def test_every_sampler_has_a_name_there():
    assert set(SAMPLERS) >= set(samplers.SAMPLERS)


def test_whole_scale_has_no_decimals_and_another_all_of_them():
    assert pairs(parameters("", **{**SETTINGS, "guidance_scale": 7.0}))["CFG scale"] == "7"
    assert pairs(parameters("", **{**SETTINGS, "guidance_scale": 7.123456789}))["CFG scale"] == "7.123456789"


def test_a_setting_without_a_key_is_a_mistake():
    with pytest.raises(TypeError, match="colour"):
        parameters("", **SETTINGS, colour="red")


@pytest.mark.parametrize("value", ["plain", "a, b", "a: b", "a\nb", 'say "x", then', "ünï, 🍎"])
def test_a_quoted_value_is_read_back(value):
    text = f"Steps: 1, Model: {quote(value)}, Seed: 2"
    assert pairs(text) == parse_parameters(text)[2] == {"Steps": "1", "Model": value, "Seed": "2"}


# ---- reading

def fields(text):
    """All that a text says, in our names."""
    prompt, negative, found = parse_parameters(text)
    options, unknown = to_options(found)
    return {"prompt": prompt, "negative_prompt": negative, **options, **unknown}


def differing(found, expected):
    """How many fields differ."""
    return sum(found.get(name) != expected.get(name) for name in found.keys() | expected.keys())


A1111 = {
    "documented": (                  # the example of that program's own documentation
        "girl with an artist's beret, determined, blue eyes, ((eyeshadow)), (coquettish), detailed, intricate\n"
        "Negative prompt: ugly, fat, (((deformed))), [blurry], bad anatomy, (extra_limb), messy drawing\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b",
        dict(prompt="girl with an artist's beret, determined, blue eyes, ((eyeshadow)), (coquettish), detailed, "
                    "intricate",
             negative_prompt="ugly, fat, (((deformed))), [blurry], bad anatomy, (extra_limb), messy drawing",
             steps="20", sampler="euler_a", schedule="discrete",
             timestep_spacing="linspace", guidance_scale="7", seed="965400086", width="512", height="512",
             rng="a1111")),
    "schedule in the sampler": (
        "a castle\nSteps: 50, Sampler: DPM++ 2M Karras, CFG scale: 5, Seed: 42, Size: 512x768, Model hash: 1f69731261, "
        "Model: v1-5-pruned-emaonly, RNG: CPU, Version: v1.4.1-166-g21aec6f5",
        dict(prompt="a castle", negative_prompt="", steps="50", sampler="dpm++2m", schedule="karras",
             guidance_scale="5", seed="42", width="512", height="768", model="v1-5-pruned-emaonly", rng="torch")),
    "schedule beside it": (
        "a castle\nSteps: 20, Sampler: DPM++ 2M SDE, Schedule type: Exponential, CFG scale: 6.5, Seed: 1, Size: 64x64, "
        "RNG: NV, Version: v1.10.1",
        dict(prompt="a castle", negative_prompt="", steps="20", sampler="dpm++2m_sde", schedule="exponential",
             guidance_scale="6.5", seed="1", width="64", height="64", rng="a1111")),
    "automatic schedule": (
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Automatic, CFG scale: 7",
        dict(prompt="", negative_prompt="", steps="20", sampler="dpm++2m", schedule="karras", guidance_scale="7",
             rng="a1111")),
    "old outpainting": (
        "clouds, 8k\nSteps: 130, Sampler: PLMS, CFG scale: 15, Seed: 4051576822, Denoising Strength: 1",
        dict(prompt="clouds, 8k", negative_prompt="", steps="130", sampler="pndm", schedule="discrete",
             guidance_scale="15", seed="4051576822", strength="1", rng="a1111")),
    "several lines": (
        "one\n\n two \nNegative prompt: three\nfour\nSteps: 1, Seed: 2, Size: 8x16",
        dict(prompt="one\n\ntwo", negative_prompt="three\nfour", steps="1", seed="2", width="8", height="16",
             rng="a1111")),
    "what nobody knows": (
        'x\nSteps: 1, Sampler: DPM adaptive, Seed: 2, Tiling: True, Lora hashes: "a: 1, b: 2", '
        'Face restoration: GFPGAN',
        dict({"Tiling": "True", "Face restoration": "GFPGAN"}, prompt="x", negative_prompt="", steps="1",
             sampler="DPM adaptive", schedule="discrete", seed="2", rng="a1111")),
    "a prompt alone": ("a: b, c: d", dict(prompt="a: b, c: d", negative_prompt="")),
}
SD_CPP = {
    "with a schedule": (
        "A sunflower field\nNegative prompt: Blue sky\nSteps: 30, CFG scale: 5.000000, Guidance: 3.500000, "
        "Eta: 0.000000, Seed: 1375127038, Size: 512x512, Model: v1-5-pruned-emaonly.safetensors, RNG: cuda, "
        "Sampler: euler_a karras, Version: stable-diffusion.cpp",
        dict(prompt="A sunflower field", negative_prompt="Blue sky", steps="30",
             guidance_scale="5.000000", seed="1375127038", width="512", height="512",
             model="v1-5-pruned-emaonly.safetensors", rng="a1111", sampler="euler_a", schedule="karras")),
    "without": (
        "A sunflower field\nSteps: 30, CFG scale: 5.000000, Seed: 7, Size: 512x512, Model: , RNG: std_default, "
        "Sampler: dpm++2m, Version: stable-diffusion.cpp",
        dict(prompt="A sunflower field", negative_prompt="", steps="30", guidance_scale="5.000000", seed="7",
             width="512", height="512", rng="std_default", sampler="dpm++2m", schedule="discrete",
             timestep_spacing="linspace")),
    "discrete": (
        "x\nSteps: 4, CFG scale: 1.000000, Seed: 7, Size: 512x512, RNG: cpu, Sampler: euler discrete, "
        "VAE: ae.safetensors, Version: stable-diffusion.cpp",
        dict(vae="ae.safetensors", prompt="x", negative_prompt="", steps="4", guidance_scale="1.000000", seed="7",
             width="512", height="512", rng="torch", sampler="euler", schedule="discrete",
             timestep_spacing="linspace")),
    "trailing": (
        "x\nSteps: 4, CFG scale: 1.000000, Seed: 7, Size: 512x512, RNG: cpu, Sampler: ddim_trailing discrete, "
        "Clip skip: 2, Version: stable-diffusion.cpp",
        dict(prompt="x", negative_prompt="", steps="4", guidance_scale="1.000000", seed="7", clip_skip="2", width="512",
             height="512", rng="torch", sampler="ddim", schedule="discrete", timestep_spacing="trailing")),
}


@pytest.mark.parametrize("case", A1111)
def test_what_the_web_interface_writes_is_understood(case):
    text, expected = A1111[case]
    agree("PNG settings", f"fields of AUTOMATIC1111's text, {case}", differing(fields(text), expected), 0, 0)


@pytest.mark.parametrize("case", SD_CPP)
def test_what_stable_diffusion_cpp_writes_is_understood(case):
    text, expected = SD_CPP[case]
    agree("PNG settings", f"fields of stable-diffusion.cpp's text, {case}", differing(fields(text), expected), 0, 0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_written_is_read_back(sampler):
    for schedule in ["discrete"] if sampler in settings_text.WITHOUT_SCHEDULE else settings_text.SCHEDULES:
        for rng in settings.RNGS:
            given = dict(steps=7, sampler=sampler, schedule=schedule, guidance_scale=0.1 + 0.2, seed=2**64 - 1, width=8,
                         height=8192, model='a, "b": c', strength=1 / 3, rng=rng)
            found = fields(parameters("a\nb: c, d: e, f: g", "(h)", **given))
            assert found == {"prompt": "a\nb: c, d: e, f: g", "negative_prompt": "(h)",
                             **{name: str(value) for name, value in given.items()}}


def test_our_pairs_are_those_that_the_web_interface_finds():
    text = parameters("a", "b", **{**SETTINGS, "model": "x, y: z", "sampler": "heun"}, strength=0.5)
    found, there = parse_parameters(text)[2], pairs(text)
    agree("PNG settings", "pairs of our text, read by the rule of AUTOMATIC1111", differing(found, there), 0, 0)


@pytest.mark.parametrize("text", ["", "\n\n", "Steps: 20", "Negative prompt:", ": , : , :", "Steps: , Seed: , Size: ",
                                  "Steps: 1, Size: 5, Seed: x", 'aa: "\\', "a" * 10**6, 'aa: "b\\", ' * 10**5,
                                  "Sampler: , Seed: 1, Schedule type: Automatic, RNG: \x00"])
def test_any_text_is_read_as_text(text):
    prompt, negative, found = parse_parameters(text)
    options, unknown = to_options(found)
    assert all(isinstance(value, str) for value in (prompt, negative, *options.values(), *unknown.values()))


@pytest.mark.parametrize("text", [" " * 10**6, "Steps: 1," + " " * 10**6 + "Seed: 2", "Steps" + " " * 10**6 + ": 1"],
                         ids=["nothing else", "between pairs", "within a key"])
def test_white_space_is_walked_over_once(text):                        # for each blank anew takes many minutes
    assert [(key, value.strip()) for key, value in settings_text.PAIR.findall(text)] == [
        (key, value) for key, value in [("Steps", "1"), ("Seed", "2")] if f"{key}:" in text]


# Labels of that program, of its own versions and older ones, which name the schedule with the sampler.
LABELS = {
    "Euler": ("euler", "discrete"), "Euler a": ("euler_a", "discrete"), "LMS": ("lms", "discrete"),
    "Heun": ("heun", "discrete"), "DPM2": ("dpm2", "discrete"), "DPM2 a": ("dpm2_a", "discrete"),
    "DPM++ 2M": ("dpm++2m", "discrete"), "DPM++ SDE": ("dpm++sde", "discrete"), "DPM++ 2M SDE": ("dpm++2m_sde", "discrete"),
    "DDIM": ("ddim", "discrete"), "PLMS": ("pndm", "discrete"), "UniPC": ("unipc", "discrete"), "LCM": ("lcm", "discrete"),
    "LMS Karras": ("lms", "karras"), "DPM2 Karras": ("dpm2", "karras"), "DPM2 a Karras": ("dpm2_a", "karras"),
    "DPM++ 2M Karras": ("dpm++2m", "karras"), "DPM++ SDE Karras": ("dpm++sde", "karras"),
    "DPM++ 2M SDE Karras": ("dpm++2m_sde", "karras"), "DPM++ 2M SDE Exponential": ("dpm++2m_sde", "exponential"),
}
SCHEDULE_LABELS = {"Uniform": "discrete", "Karras": "karras", "Exponential": "exponential", "SGM Uniform": "sgm_uniform",
                   "Beta": "beta", "Align Your Steps": "align_your_steps"}
AUTOMATIC = {"DPM++ 2M": "karras", "DPM++ SDE": "karras", "DPM2": "karras", "DPM2 a": "karras",
             "DPM++ 2M SDE": "exponential", "Euler": "discrete", "LMS": "discrete", "Heun": "discrete"}


@pytest.mark.parametrize("label", LABELS)
def test_labels_of_the_web_interface_are_our_samplers_and_schedules(label):
    found = fields(f"a\nSteps: 20, Sampler: {label}, CFG scale: 7")
    assert (found["sampler"], found["schedule"]) == LABELS[label]


@pytest.mark.parametrize("sampler", [label for label in LABELS if LABELS[label][1] == "discrete"])
def test_our_samplers_and_schedules_are_written_with_the_labels_of_the_web_interface(sampler):
    name = LABELS[sampler][0]
    for label, schedule in SCHEDULE_LABELS.items():
        if schedule in samplers.SAMPLERS[name].schedules:
            found = pairs(parameters("", **{**SETTINGS, "sampler": name, "schedule": schedule}))
            expected = None if name in ("ddim", "pndm", "lcm") and schedule == "discrete" else label
            assert (found["Sampler"], found.get("Schedule type")) == (sampler, expected)


@pytest.mark.parametrize("label", SCHEDULE_LABELS)
def test_labels_of_schedules_are_our_schedules(label):
    found = fields(f"a\nSteps: 20, Sampler: Euler, Schedule type: {label}, CFG scale: 7")
    assert (found["sampler"], found["schedule"]) == ("euler", SCHEDULE_LABELS[label])


@pytest.mark.parametrize("label", AUTOMATIC)
def test_the_automatic_schedule_is_that_of_the_sampler(label):
    assert fields(f"a\nSteps: 20, Sampler: {label}, Schedule type: Automatic, CFG scale: 7")["schedule"] == AUTOMATIC[label]


# ---- the command

def test_metadata_prints_what_is_inside(tmp_path, capsys):
    text = parameters("größe", "blurry", **SETTINGS)
    path = save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", png_info(text))
    assert cli.main(["metadata", str(path)]) == 0
    assert capsys.readouterr().out == text + "\n"


def test_what_can_be_read_is_printed_before_the_error(tmp_path, capsys):
    text = parameters("größe", "blurry", **SETTINGS)
    path = save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", png_info(text))
    Image.new("RGB", (8, 8)).save(tmp_path / "empty.png")
    assert cli.main(["metadata", str(tmp_path / "empty.png"), str(path), str(tmp_path / "missing.png")]) == 1
    printed = capsys.readouterr()
    assert printed.out == f"{path}:\n{text}\n"
    assert re.fullmatch("npdiffusion: error: .*empty.png: there are no settings inside .*\n"
                        "npdiffusion: error: .*missing.png: can't be read .*\n", printed.err)


def test_a_text_cannot_control_the_terminal(tmp_path, capsys):
    path = save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", png_info("a\x1b[2Jb\x9b1m\r\tc\nSteps: 1"))
    assert cli.main(["metadata", str(path)]) == 0
    assert capsys.readouterr().out == "a\\x1b[2Jb\\x9b1m\\r\tc\nSteps: 1\n"


@pytest.mark.parametrize("prompt", [
    "a cat", "a packet that says steps: 40, size: 8x8, seed: 9, on it", "a (model:1.3) (seed:1.1) pod"])
def test_json_behind_a_key_is_one_value(prompt):
    """As stable-diffusion.cpp and Civitai write it"""
    theirs = json.dumps({"prompt": {"positive": prompt, "negative": "x"}, "seed": 5, "sampling": {"steps": 3}})
    resources = '[{"type":"checkpoint","modelVersionId":1, "steps": 9}]'
    found = settings_text.parse_parameters(f"{prompt}\nSteps: 3, Seed: 5, Size: 64x64, SDCPP: {theirs}, "
                                f"Civitai resources: {resources}, RNG: cuda")
    assert found == (prompt, "", {"Steps": "3", "Seed": "5", "Size": "64x64", "SDCPP": theirs, "Civitai resources": resources,
                                  "RNG": "cuda"})


@pytest.mark.parametrize("written, sampler, schedule", [
    ("dpm++2m ays", "dpm++2m", "align_your_steps"), ("euler simple", "euler", "sgm_uniform"),
    ("euler_a kl_optimal", "euler_a", "kl_optimal"), ("dpmpp_2m_karras", "dpm++2m", "karras"),
    ("heun gits", "heun", "gits"), ("euler_a karras", "euler_a", "karras"), ("euler_a", "euler_a", "discrete")])
def test_sampler_and_schedule_of_stable_diffusion_cpp_are_read_singly(written, sampler, schedule):
    options, _ = to_options({"Sampler": written, "Version": "stable-diffusion.cpp"})
    assert (options["sampler"], options["schedule"]) == (sampler, schedule)


def test_a_sampler_whose_name_begins_like_a_known_one_is_another():
    options, _ = to_options({"Sampler": "DPM++ 2M SDE Heun", "Version": "v1.10.1"})
    assert options["sampler"] == "DPM++ 2M SDE Heun"


@pytest.mark.parametrize("written, scale", [
    ({"Hires resize": "128x192"}, "2"), ({"Hires resize": "96x0"}, "1.5"), ({"Hires scale": "2"}, "2"),
    ({"Hires upscale": "3", "Hires resize": "128x192"}, "3"), ({"Hires resize": "128x128"}, None),
    ({"Hires resize": "big"}, None)])
def test_hires_fix_is_a_factor_however_it_is_written(written, scale):
    options, unknown = to_options({"Size": "64x96", "Denoising strength": "0.5"} | written)
    assert options.get("hires") == scale and options.get("hires_strength") == "0.5" and "strength" not in options
    assert ("Hires resize" in unknown) == ("Hires resize" in written and (scale is None or scale == "3"))


@pytest.mark.parametrize("theirs, ours", [("R-ESRGAN 4x+ Anime6B", "lanczos"), ("None", "lanczos"), ("Lanczos", "lanczos"),
                                          ("Latent (nearest-exact)", "latent"), ("Latent", "latent")])
def test_the_nearest_upscaler_is_taken(theirs, ours):
    assert to_options({"Hires upscale": "2", "Hires upscaler": theirs})[0]["hires_upscaler"] == ours
