"""`--like FILE`: the settings inside a picture are those of the next one."""
import pytest
from PIL import Image

from npdiffusion.checkpoints import library
from npdiffusion.command import cli
from npdiffusion.kernels import machine
from npdiffusion.pictures import images
from npdiffusion.pictures.text_inside import png_info, read_text
from tests.fake_pipeline import PROMPT


def written(text, name="in.png"):
    """A picture of another size with this text inside."""
    return images.save_png(Image.new("RGB", (8, 8)), name, png_info(text))


def asked(pipeline, *arguments):
    """What the pipeline was asked for, for these arguments."""
    assert cli.main(list(arguments)) == 0
    return pipeline.asked[-1]


@pytest.mark.parametrize("options", [
    ["-s", "5"],
    ["-n", "blurry, dull", "--steps", "7", "--sampler", "dpm++2m", "--schedule", "karras", "-s", "9",
     "--cfg-scale", "3.3"],
    ["--sampler", "ddim", "-W", "64", "-H", "200", "--rng", "numpy"],
    ["--clip-skip", "2", "--prompt-syntax", "plain"],
], ids=["defaults", "many", "others", "prompt"])
def test_a_picture_is_made_again_with_the_same_settings(options, pipeline):
    first = asked(pipeline, PROMPT, *options, "-o", "out.png")
    assert asked(pipeline, "--like", "out.png", "-o", "again.png") == first
    assert read_text("again.png") == read_text("out.png")


def test_clip_skip_counts_as_in_the_web_interface(pipeline):
    assert asked(pipeline, PROMPT, "--clip-skip", "2", "-o", "out.png")["clip_skip"] == 1
    assert ", Clip skip: 2, " in read_text("out.png")
    written("a cat\nSteps: 5, Sampler: DDIM, Seed: 7, Clip skip: 3, RNG: CPU")
    assert asked(pipeline, "--like", "in.png")["clip_skip"] == 2


def test_options_of_the_command_line_override(pipeline):
    first = asked(pipeline, PROMPT, "--steps", "7", "-s", "9", "-o", "out.png")
    again = asked(pipeline, "a blue pear", "--like", "out.png", "--steps", "8")
    assert again == first | {"prompt": "a blue pear", "steps": 8}


def test_image_to_image_needs_the_picture_again(pipeline, tmp_path, capsys):
    Image.new("RGB", (128, 128)).save(tmp_path / "start.png")
    first = asked(pipeline, PROMPT, "-i", "start.png", "--strength", "0.3", "-o", "out.png")
    assert asked(pipeline, "--like", "out.png", "-i", "start.png")["strength"] == first["strength"] == 0.3
    capsys.readouterr()
    assert "strength" not in asked(pipeline, "--like", "out.png")
    printed = capsys.readouterr().err
    assert "out.png: Denoising strength: 0.3 is not followed (it was made from another picture" in printed


def notes(capsys):
    return [line.removeprefix("in.png: ") for line in capsys.readouterr().err.splitlines() if "not followed" in line]


def test_what_cannot_be_followed_is_said_in_a_note_each(pipeline, capsys):
    written("a cat\nSteps: 5000, Sampler: DPM adaptive, CFG scale: 3, Seed: -7, Size: 100x64, Model: nowhere/v9, "
            "Tiling: True, RNG: CPU, Version: v1.10.1")
    found = asked(pipeline, "--like", "in.png")
    assert [found[name] for name in ("prompt", "steps", "sampler", "guidance_scale", "width", "height")] == [
        "a cat", 50, "pndm", 3, 128, 64]
    said = notes(capsys)
    expected = ("Tiling: True is not followed (there is no such option here)",
                "Steps: 5000 is not followed (5000 is out of range", "Seed: -7 is not followed (-7 is out of range",
                "Sampler: DPM adaptive is not followed ('DPM adaptive' is unknown, ",
                "Size: 100x64 is not followed (100 is no multiple of 8",
                "Model: nowhere/v9 is not followed (it is not among")
    assert len(said) == len(expected)
    for beginning in expected:
        assert any(line.startswith(beginning) for line in said), beginning


def test_what_is_overridden_needs_no_note(pipeline, capsys):
    written("a cat\nSteps: 5000, Sampler: DPM adaptive, Seed: 7, RNG: CPU")
    asked(pipeline, "--like", "in.png", "--steps", "2", "--sampler", "heun")
    assert notes(capsys) == []


def test_the_uniform_schedule_of_others_is_evenly_spaced_unless_another_sampler_is_named(pipeline):
    written("a cat\nSteps: 5, Sampler: Euler, Seed: 7, Clip skip: 2")
    found = asked(pipeline, "--like", "in.png")
    assert (found["timestep_spacing"], found["rng"], found["clip_skip"]) == ("linspace", "a1111", 1)
    assert "timestep_spacing" not in asked(pipeline, "--like", "in.png", "--sampler", "ddim")


def test_switches_that_are_off_are_read_as_such(pipeline, capsys):
    written("a cat\nSteps: 5, Sampler: Euler, Seed: 7, Noise Schedule: Default, Mask mode: Inpaint masked")
    assert not asked(pipeline, "--like", "in.png").get("rescale_betas_zero_snr")
    assert notes(capsys) == []


def test_everything_at_once_comes_back(pipeline):
    first = asked(pipeline, PROMPT, "-n", "b, c", "--steps", "9", "--sampler", "ddim", "--eta", "0.3",
                  "--clip-skip", "2", "--cfg-scale", "3.3", "-s", "5", "--subseed", "6", "--subseed-strength", "0.25",
                  "--rng", "a1111", "--guidance-rescale", "0.7", "--timestep-spacing", "trailing",
                  "--prediction-type", "v_prediction",
                  "--zero-terminal-snr", "--prompt-syntax", "plain", "--hires", "1.5", "--hires-steps", "4",
                  "--hires-strength", "0.6", "--hires-upscaler", "lanczos", "-W", "64", "-H", "72", "-o", "out.png")
    assert asked(pipeline, "--like", "out.png", "-o", "again.png") == first
    assert read_text("again.png") == read_text("out.png")


def test_a_schedule_that_the_sampler_does_not_take_is_left_out(pipeline):
    written("a cat\nSteps: 5, Sampler: DDIM, Schedule type: Karras, Seed: 7, RNG: CPU")
    assert asked(pipeline, "--like", "in.png")["schedule"] == "discrete"


def test_a_model_is_looked_for_by_name_alone(pipeline, tmp_path, monkeypatch, capsys):
    (tmp_path / "models").mkdir()
    for place in tmp_path, tmp_path / "models":
        (place / "v1-5.safetensors").touch()
    monkeypatch.setenv(library.VARIABLE, str(tmp_path / "models"))
    for name in "v1-5", "v1-5.safetensors":
        written(f"a cat\nSteps: 5, Seed: 7, Model: {name}, RNG: CPU")
        asked(pipeline, "--like", "in.png")
    path = str(tmp_path / "models" / "v1-5.safetensors")
    assert [arguments for arguments, _ in pipeline.loaded] == [(path,)] * 2
    written(f'a cat\nSteps: 5, Seed: 7, Model: "{tmp_path}/v1-5.safetensors", RNG: CPU')
    asked(pipeline, "--like", "in-3.png")
    assert pipeline.loaded[-1][0] == (None,)
    assert "Model: " in capsys.readouterr().err


def test_a_replacement_vae_is_named_and_found_again(pipeline, tmp_path, monkeypatch, capsys):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "ema-840000.safetensors").touch()
    asked(pipeline, PROMPT, "--vae", "models/ema-840000.safetensors", "-o", "out.png")
    assert "VAE: ema-840000" in read_text("out.png")
    asked(pipeline, "--like", "out.png")
    assert pipeline.loaded[-1][1]["vae"] is None and "VAE: ema-840000 is not followed" in capsys.readouterr().err
    monkeypatch.setenv(library.VARIABLE, "models")
    asked(pipeline, "--like", "out.png", "-o", "again.png")
    assert pipeline.loaded[-1][1]["vae"] == "models/ema-840000.safetensors" and read_text("again.png") == read_text("out.png")


def test_a_picture_with_a_text_that_is_no_settings_is_an_error(pipeline, capsys):
    written("a cat, and\n\x1bnothing else")
    assert cli.main(["--like", "in.png"]) == 1
    assert capsys.readouterr().err == ("npdiffusion: error: in.png: there are no settings inside, only a text: a cat, and "
                                       "\\x1bnothing else\n")
    assert pipeline.loaded == []


BEFORE = "a cat\nSteps: 3, Seed: 7, Size: 64x64, RNG: CPU, "


@pytest.mark.parametrize(("text", "named", "left_out", "kept"), [
    ("a cat\nSteps: 5000, Sampler: DPM adaptive, Seed: -5", [], ["Steps: 5000", "Sampler: DPM adaptive", "Seed: -5"], {}),
    ("a cat\nTiling: True, Score: 7, Likes: 3", [], ["Tiling: True", "Score: 7", "Likes: 3"], {"steps": 50}),
    (BEFORE + "Sampler: DPM++ 2S a, Schedule type: Karras", [], ["Sampler: DPM++ 2S a", "Schedule type: Karras"],
     {"sampler": "pndm", "schedule": "discrete", "seed": 7}),
    (BEFORE + "Schedule type: Karras, Version: v1.10.1", [], ["Schedule type: Karras"], {"schedule": "discrete", "steps": 3}),
    (BEFORE + "Sampler: DDIM, Schedule type: Karras", [], ["Schedule type: Karras"], {"sampler": "ddim"}),
    (BEFORE + "Sampler: DDIM", ["--schedule", "karras", "--sampler", "euler"], [], {"sampler": "euler", "schedule": "karras"}),
    (BEFORE + "Sampler: Euler a, Clip skip: 99", [], ["Clip skip: 99"], {"seed": 7, "sampler": "euler_a"}),
    (BEFORE + "Sampler: Euler a, Clip skip: 40", [], ["Clip skip: 40"], {"seed": 7, "sampler": "euler_a"}),
    (BEFORE + "Variation seed: 5", [], ["Variation seed: 5"], {"seed": 7}),
    (BEFORE + "Variation seed strength: 0.5", [], ["Variation seed strength: 0.5"], {"seed": 7}),
    (BEFORE + "Variation seed: 5, Variation strength: 0.5", [], [], {"seed": 7, "subseed": 5, "subseed_strength": 0.5}),
    (BEFORE + "Variation seed: -1, Variation seed strength: 0.5", [], [], {"seed": 7, "subseed_strength": 0.5}),
    (BEFORE + "Variation seed: 5, Clip skip: 40, Sampler: X, Schedule type: Karras, Denoising strength: 7, Hires upscale: 9",
     [], ["Variation seed: 5", "Clip skip: 40", "Sampler: X", "Schedule type: Karras", "Denoising strength: 7",
          "Hires upscale: 9"], {"seed": 7, "steps": 3}),
    (BEFORE + "Hires upscale: 2, Hires resize: 128x128", [], [], {"hires": 2}),
    (BEFORE + "Hires resize: 128x128", [], [], {"hires": 2}),
    (BEFORE + "Hires upscale: 2, Hires resize: 128x64", [], ["Hires resize: 128x64"], {"hires": 2}),
    ("a cat\nSteps: 3, Seed: 7, Size: 8192x8192, RNG: CPU", [], ["Size: 8192x8192"], {"width": 128, "height": 128}),
    ("a <lora:ink:0.5> <lora:oil> cat\nSteps: 3, Seed: 7, Size: 64x64", [], [], {"prompt": "a   cat", "seed": 7}),
    ("a cat\nNegative prompt: " + "x" * 100_001 + "\nSteps: 3, Seed: 7, Size: 64x64", [], ["Negative prompt"], {"seed": 7}),
])
def test_what_does_not_go_together_or_with_the_model_is_a_note_and_a_picture_is_made(text, named, left_out, kept, pipeline,
                                                                                     capsys, monkeypatch):
    monkeypatch.setattr(machine, "memory_available", lambda: 8e9)
    written(text)
    found = asked(pipeline, "--like", "in.png", *named)
    assert found == found | kept
    said = notes(capsys)
    assert [beginning for beginning in left_out if not any(line.startswith(beginning) for line in said)] == []
    assert len(said) == len(left_out)


HIRES = "it belongs to hires fix"


@pytest.mark.parametrize(("end", "reasons"), [
    ("Hires upscale: 2, Hires resize: 128x128, Hires upscaler: Latent, Denoising strength: 0.4", {}),
    ("Hires upscale: 2, Hires upscaler: R-ESRGAN 4x+", {"Hires upscaler: R-ESRGAN 4x+": "lanczos, the nearest that is"}),
    ("Hires upscale: 2, Hires upscaler: Latent (bicubic)", {"Hires upscaler: Latent (bicubic)": "latent, the nearest that is"}),
    ("Hires resize: 100x128, Denoising strength: 0.7", {"Hires resize: 100x128": "hires fix makes both sides",
                                                        "Denoising strength: 0.7": HIRES}),
    ("Hires upscale: 9, Denoising strength: 0.7", {"Hires upscale: 9": "9 is out of range", "Denoising strength: 0.7": HIRES}),
    ("First pass size: 0x0, Denoising strength: 0.7", {"First pass size: 0x0": "there is no such option",
                                                       "Denoising strength: 0.7": HIRES}),
    ("Hires steps: 5", {"Hires steps: 5": HIRES}),
    ("Denoising strength: 0.7", {"Denoising strength: 0.7": "it was made from another picture"}),
    ("Mask blur: 4", {"Mask blur: 4": "it was made from a mask"}),
    ("VAE: None", {}), ("VAE: Automatic", {}), ("VAE: nice", {"VAE: nice": "it is not among those"}),
    ("Emphasis: Original", {}), ("Emphasis: No norm", {"Emphasis: No norm": "there is no such option"}),
    ("Pad conds: True", {}),
    ('Hashes: {"model": "ab"}, Civitai resources: [{"a": 1}], Created Date: 2024-01-01T00:00', {}),
    ("Schedule type: Automatic", {}), ("Sampler: PLMS, Schedule type: Karras", {"Schedule type: Karras": "pndm walks over"}),
])
def test_a_note_gives_the_true_reason_and_there_is_none_about_what_is_followed(end, reasons, pipeline, capsys):
    written(f"a cat\nSteps: 5, Seed: 7, Size: 64x64, RNG: CPU, {end}")
    asked(pipeline, "--like", "in.png")
    said = dict(line.split(" is not followed (") for line in notes(capsys))
    assert said.keys() == reasons.keys()
    assert [what for what in said if not said[what].startswith(reasons[what])] == []


@pytest.mark.parametrize("prompt", ["".join(f"[::{number % 999}]" for number in range(110_000)),
                                    "a" + "\u0301\u0327" * 125_000], ids=["edits", "marks"])
def test_a_prompt_inside_a_picture_is_at_most_as_long_as_a_typed_one(prompt, pipeline, capsys):
    written(f"{prompt}\nSteps: 500, Sampler: DDIM, Seed: 1, Size: 64x64")
    assert cli.main(["--like", "in.png"]) in (1, 2) and not pipeline.asked
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("npdiffusion: error: ") and "100000" in last and len(last) < 500
    assert asked(pipeline, "a cat", "--like", "in.png")["steps"] == 500


def test_minus_one_is_a_random_seed_and_noted(pipeline, capsys):
    written("a cat\nSteps: 5, Seed: -1, Size: 64x64, RNG: CPU")
    first, second = asked(pipeline, "--like", "in.png"), asked(pipeline, "--like", "in.png")
    assert first["seed"] != second["seed"] and first["steps"] == 5
    assert capsys.readouterr().err.count("in.png: Seed: -1 stands for a random one\n") == 2
    asked(pipeline, "--like", "in.png", "--seed", "3")
    assert "random" not in capsys.readouterr().err


def test_notes_cannot_control_the_terminal(pipeline, capsys):
    written("a cat\nSteps: 5, Sampler: \x1b[2Jx, Seed: 7, a\x1bb: 3")
    asked(pipeline, "--like", "in.png")
    assert "\x1b[2J" not in capsys.readouterr().err


@pytest.mark.parametrize(("make", "message"), [
    (lambda path: Image.new("RGB", (8, 8)).save(path), "in.png: there are no settings inside"),
    (lambda path: path.write_text("no picture"), "in.png: damaged, or not a picture"),
    (lambda path: None, "in.png: can't be read"),
], ids=["none", "text", "missing"])
def test_a_file_without_settings_is_one_clear_line(make, message, pipeline, tmp_path, capsys):
    make(tmp_path / "in.png")
    assert cli.main(["--like", "in.png"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"npdiffusion: error: {message}") and printed.count("\n") == 1
    assert pipeline.loaded == []


def test_no_metadata_leaves_the_settings_out(pipeline):
    asked(pipeline, PROMPT, "--no-metadata", "-o", "out.png")
    with Image.open("out.png") as image:
        assert image.text == {}
