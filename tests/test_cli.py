"""The command line, with a pipeline that paints in one colour in place of the real one."""
import os
import re
import sys
import types
import warnings

import numpy as np
import pytest
from PIL import Image

import npdiffusion
from npdiffusion import kernels
from npdiffusion.command import cli, options, prepare
from npdiffusion.diffusion import samplers
from npdiffusion.diffusion.schedules import NoiseSchedule
from npdiffusion.errors import UserError
from npdiffusion.jobs import destinations as names
from npdiffusion.kernels import machine
from npdiffusion.pictures import images, settings_text, text_inside
from npdiffusion.settings import NO_EFFECT, SETTINGS, Request, run
from tests.differences import agree
from tests.fake_pipeline import PROMPT, files, settings_in
from tests.processes import modules_after, run_python

# ---- what comes out


def test_a_prompt_makes_a_picture_named_after_it(pipeline, tmp_path, capsys):
    assert cli.main([PROMPT, "-s", "7"]) == 0
    assert files(tmp_path) == ["a-red-apple-7.png"]
    assert capsys.readouterr().out == "a-red-apple-7.png\n"


def test_defaults_are_those_of_the_model(pipeline):
    cli.main([PROMPT, "-s", "7"])
    asked, = pipeline.asked
    assert asked == dict(prompt=PROMPT, negative_prompt="", steps=50, guidance_scale=4.0, sampler="pndm",
                         schedule="discrete", seed=7, width=128, height=128, rng="torch", prompt_syntax="a1111")
    assert pipeline.loaded == [((None,), dict(dtype=None, threads=machine.physical_cores(), tokenizer=None,
                                              lora_dir=None, vae=None, embedding_dir=None, max_memory=None,
                                              preview_vae=None, control=None, unet=None, refiner=None,
                                              ip_adapter=None, image_encoder=None, t2i_adapter=None,
                                              requests=[Request(PROMPT, seed=7)]))]


def test_every_option_reaches_the_pipeline(pipeline, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "loras").mkdir()
    cli.main([PROMPT, "-n", "blur", "--steps", "3", "--guidance-scale", "2", "-s", "9", "-W", "64", "-H", "72",
              "-t", "1", "--sampler", "euler", "--schedule", "karras", "--rng", "numpy", "-m", "model",
              "--tokenizer", "folder", "--lora-dir", "loras", "--dtype", "bfloat16",
              "--vae", "taesd", "--vae-tiling", "on", "--clip-skip", "2",
              "--prompt-syntax", "plain", "--embedding-dir", "."])
    asked, = pipeline.asked
    assert asked == dict(prompt=PROMPT, negative_prompt="blur", steps=3, guidance_scale=2.0, sampler="euler",
                         schedule="karras", seed=9, width=64, height=72, rng="numpy", clip_skip=1, prompt_syntax="plain")
    assert pipeline.made[0].tile == 512 and pipeline.made[0].request.vae_tiling == "on"
    assert pipeline.loaded == [(("model",), dict(dtype="bfloat16", threads=1, tokenizer="folder", lora_dir="loras",
                                                  vae="taesd", embedding_dir=".", max_memory=None, preview_vae=None,
                                                  control=None, unet=None, refiner=None, ip_adapter=None,
                                                  image_encoder=None, t2i_adapter=None,
                                                  requests=[pipeline.made[0].request]))]


def test_options_of_sampling_reach_the_pipeline_and_the_png(pipeline):
    cli.main([PROMPT, "--steps", "2", "-s", "9", "--sampler", "ddim", "--schedule", "sgm_uniform", "--eta", "0.5",
              "--rng", "a1111", "--subseed", "4", "--subseed-strength", "0.1", "--guidance-rescale", "0.7",
              "--prediction-type", "v_prediction", "--zero-terminal-snr", "-b", "2", "-o", "out/"])
    assert [(asked["seed"], asked["subseed"]) for asked in pipeline.asked] == [(9, 4), (9, 5)]
    asked = pipeline.asked[0]
    assert {name: asked[name] for name in ("eta", "rng", "subseed_strength", "guidance_rescale", "prediction_type",
                                           "rescale_betas_zero_snr", "timestep_spacing", "schedule")} == dict(
        eta=0.5, rng="a1111", subseed_strength=0.1, guidance_rescale=0.7, prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing", schedule="sgm_uniform")
    text = settings_in("out/a-red-apple-9.png")
    for pair in ("Sampler: DDIM, Schedule type: SGM Uniform", "RNG: NV, Variation seed: 4, Variation seed strength: 0.1",
                 "Eta DDIM: 0.5", "CFG rescale: 0.7", "Prediction type: v_prediction", "Noise Schedule: Zero Terminal SNR"):
        assert pair in text


@pytest.mark.parametrize("option, names", [("--sampler", samplers.SAMPLERS), ("--schedule", samplers.SCHEDULES)])
def test_help_lists_names_with_a_line_each(option, names, pipeline, capsys):
    assert cli.main([PROMPT, option, "help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(names) and max(map(len, lines)) <= 120
    assert pipeline.loaded == []


def test_a_model_for_few_steps_gets_few_and_says_so(pipeline, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "schedule", NoiseSchedule(class_name="LCMScheduler"))
    monkeypatch.setattr(pipeline, "default_sampler", "lcm")
    cli.main([PROMPT])
    assert pipeline.asked[-1]["steps"] == 4
    assert "4 steps and guidance scale 4 (--steps and --cfg-scale choose others)" in capsys.readouterr().err
    cli.main([PROMPT, "--steps", "8", "--cfg-scale", "1"])
    assert pipeline.asked[-1]["steps"] == 8 and "choose others" not in capsys.readouterr().err


def test_the_settings_are_in_the_png(pipeline):
    cli.main([PROMPT, "-n", "blur", "--steps", "3", "-s", "9", "-o", "out.png"])
    assert settings_in("out.png") == (
        "a red apple\nNegative prompt: blur\n"
        "Steps: 3, Sampler: PLMS, CFG scale: 4, Seed: 9, Size: 128x128, Model: embedded, RNG: CPU, "
        f"Version: npdiffusion {npdiffusion.__version__}")


def test_a_model_that_was_saved_with_karras_sigmas_keeps_them(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline, "schedule", NoiseSchedule(use_karras_sigmas=True))
    cli.main([PROMPT, "--sampler", "euler", "-o", "out.png"])
    cli.main([PROMPT, "--sampler", "ddim"])
    assert [asked["schedule"] for asked in pipeline.asked] == ["karras", "discrete"]
    assert "Schedule type: Karras" in settings_in("out.png")


@pytest.mark.parametrize("arguments", [[], ["-s", "-1"]], ids=["no seed", "-1"])
def test_a_random_seed_is_printed(arguments, pipeline, capsys):
    cli.main([PROMPT, *arguments])
    cli.main([PROMPT, *arguments])
    first, second = (asked["seed"] for asked in pipeline.asked)
    assert first != second
    messages = capsys.readouterr().err
    assert f"seed {first}" in messages and f"seed {second}" in messages


def test_a_batch_counts_the_seed_on(pipeline, tmp_path):
    cli.main([PROMPT, "-b", "3", "-s", "5"])
    assert [asked["seed"] for asked in pipeline.asked] == [5, 6, 7]
    assert files(tmp_path) == ["a-red-apple-5.png", "a-red-apple-6.png", "a-red-apple-7.png"]
    assert "Seed: 7" in settings_in("a-red-apple-7.png")


def test_the_time_of_every_stage_is_told_at_the_end(pipeline, capsys):
    cli.main([PROMPT, "-b", "2", "--steps", "10"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"loading \d+\.\d\d s, text 0\.50 s, sampling 4\.00 s \(0\.200 s/step\), "
                        r"decoding 1\.00 s, total \d+\.\d\d s", last)


def test_the_bar_shows_seconds_per_step(pipeline, capsys):
    cli.main([PROMPT, "--steps", "4"])
    assert re.search(r"100%\|.*\| 4/4 \[00:00<00:00, +\d+\.\d\ds/step\]", capsys.readouterr().err)


def test_threads_are_physical_cores_and_printed(pipeline, monkeypatch, capsys):
    monkeypatch.setattr(machine, "physical_cores", lambda: 3)
    monkeypatch.setattr(machine, "logical_cores", lambda: 6)
    cli.main([PROMPT])
    assert "3 threads" in capsys.readouterr().err
    assert pipeline.loaded[0][1]["threads"] == 3


def test_more_threads_than_cores_are_reduced_with_a_note(pipeline, monkeypatch, capsys):
    monkeypatch.setattr(machine, "logical_cores", lambda: 6)
    assert cli.main([PROMPT, "-t", "99"]) == 0
    assert "--threads: 99 is more than there are cores here, 6 will be used" in capsys.readouterr().err
    assert pipeline.loaded[0][1]["threads"] == 6


# ---- output

def test_an_existing_file_is_kept_and_this_is_said(pipeline, tmp_path, capsys):
    (tmp_path / "out.png").write_text("precious")
    assert cli.main([PROMPT, "-o", "out.png"]) == 0
    assert (tmp_path / "out.png").read_text() == "precious"
    printed = capsys.readouterr()
    assert printed.out == "out-2.png\n"
    assert "out.png is there already" in printed.err


def test_a_batch_into_one_file_name_is_numbered_without_a_note(pipeline, tmp_path, capsys):
    cli.main([PROMPT, "-b", "3", "-o", "out.png"])
    assert files(tmp_path) == ["out-2.png", "out-3.png", "out.png"]
    assert "already" not in capsys.readouterr().err


@pytest.mark.parametrize("output", ["new/", "new/deep/", "there"])
def test_output_into_a_folder(output, pipeline, tmp_path):
    (tmp_path / "there").mkdir()
    assert cli.main([PROMPT, "-s", "1", "-o", output]) == 0
    assert files(tmp_path / output) == ["a-red-apple-1.png"]


def test_a_name_without_ending_gets_one(pipeline, tmp_path):
    cli.main([PROMPT, "-o", "version1.5"])
    assert files(tmp_path) == ["version1.5.png"]


@pytest.mark.parametrize(("name", "kind"), [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP"), ("a.png", "PNG")])
def test_the_ending_says_the_format_and_the_settings_come_back(name, kind, pipeline, tmp_path, capsys):
    assert cli.main(["größe 🍎", "-n", "blur", "--steps", "3", "-s", "9", "-o", name]) == 0
    with Image.open(name) as image:
        assert image.format == kind and image.size == (128, 128)
        agree("written pictures", f"levels of red, {name}", np.array(image.convert("RGB")),
              np.broadcast_to([255, 0, 0], (128, 128, 3)), 3)
    capsys.readouterr()
    assert cli.main(["metadata", name]) == 0
    assert capsys.readouterr().out.startswith("größe 🍎\nNegative prompt: blur\nSteps: 3, ")
    assert cli.main(["--like", name, "-o", "again.jpg"]) == 0
    assert pipeline.asked[0] == pipeline.asked[1]
    assert text_inside.read_text("again.jpg") == text_inside.read_text(name)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png"])
def test_without_metadata_no_format_has_settings_inside(name, pipeline):
    assert cli.main([PROMPT, "--no-metadata", "-o", name]) == 0
    with pytest.raises(UserError, match="there are no settings inside"):
        text_inside.read_text(name)


def test_a_place_in_the_name_numbers_the_pictures_on_from_the_highest_that_is_there(pipeline, tmp_path, capsys):
    for name in "7% 002.jpg", "7% 0011.jpg", "7% 999.png", "x7% 999.jpg":
        (tmp_path / name).write_text("precious")
    before = set(files(tmp_path))
    assert cli.main([PROMPT, "-b", "2", "-o", "7%% %03d.jpg"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "7% 012.jpg\n7% 013.jpg\n" and "already" not in printed.err
    assert {name for name in before if (tmp_path / name).read_text(errors="ignore") == "precious"} == before
    assert cli.main([PROMPT, "--grid", "-o", "%d"]) == 0
    assert set(files(tmp_path)) - before == {"7% 012.jpg", "7% 013.jpg", "1.png", "1-grid.png"}


def test_the_sheet_of_all_has_the_format_of_the_pictures(pipeline, tmp_path):
    assert cli.main([PROMPT, "-b", "2", "--grid", "--preview", "linear", "-o", "a-%02d.webp"]) == 0
    assert files(tmp_path) == ["a-01-grid.webp", "a-01.webp", "a-02.webp"]
    with Image.open("a-01-grid.webp") as image:
        assert image.format == "WEBP"


def test_what_a_format_has_no_room_for_is_a_png_and_this_is_said(pipeline, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(images.LONGEST_SIDES, "WEBP", 100)
    for output, name in ("a.webp", "a.png"), ("%d.webp", "1.png"):
        assert cli.main([PROMPT, "-o", output]) == 0
        assert "it has more pixels a side than this format takes, so it is a PNG" in capsys.readouterr().err
        assert settings_in(name).startswith(PROMPT)


@pytest.mark.parametrize(("output", "message"), [
    ("missing/out.png", "--output: there is no folder missing"),
    ("file/out.png", "--output: there is no folder file"),
    ("file/", "--output: the folder file can't be created"),
    ("out.gif", "--output: out.gif: the ending .gif is unknown, known are .png, .jpg, .jpeg, .webp\n"),
    ("a%03i.png", "--output: a%03i.png: % begins the place of the number, %d or %03d, which may be there once; %% is a"),
    ("%d-%d.png", "--output: %d-%d.png: % begins the place of the number"),
    ("%999d.png", "--output: the file name is too long"),
    ("x" * 300, "--output: the file name is too long"),
    ("", "--output: the name is empty"), (os.devnull, f"--output: {os.devnull} is a device or a pipe, and pictures are whole"),
], ids=["missing", "file", "file as folder", "gif", "other place", "two places", "wide", "long", "empty", "device"])
def test_an_impossible_output_is_found_before_loading(output, message, pipeline, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.main([PROMPT, "-o", output]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"npdiffusion: error: {message}") and printed.count("\n") == 1
    assert pipeline.loaded == []


def test_a_folder_that_cannot_be_written_is_found_before_loading(pipeline, monkeypatch, capsys):
    def refuse(path, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    code = cli.main([PROMPT, "-o", "."])
    monkeypatch.undo()
    assert code == 1 and pipeline.loaded == []
    assert capsys.readouterr().err == "npdiffusion: error: .: no file can be written here (Permission denied)\n"


@pytest.mark.parametrize(("prompt", "name"), [
    ("A red apple, on a blue background!", "a-red-apple-on-a-blue-background-1.png"),
    ("../../etc/passwd", "etc-passwd-1.png"),
    ("", "picture-1.png"),
    ("🍎", "picture-1.png"),
    ("größe りんご", "größe-りんご-1.png"),
    ("word " * 50, "-".join(["word"] * 12) + "-1.png"),
    ("り" * 50, "り" * 20 + "-1.png"),
], ids=["words", "path", "empty", "emoji", "unicode", "long", "long word"])
def test_names_made_of_prompts(prompt, name):
    assert names.default_name(prompt, 1) == name


def test_models_are_called_by_their_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v1-5.safetensors").touch()
    (tmp_path / "folder").mkdir()
    assert settings_text.model_name(str(tmp_path / "v1-5.safetensors")) == "v1-5"
    assert settings_text.model_name("folder/") == "folder"
    assert settings_text.model_name("org/name") == "org/name"


# ---- image to image

def test_a_picture_to_start_from_is_scaled_with_a_note(pipeline, tmp_path, capsys):
    Image.new("RGB", (60, 40)).save(tmp_path / "in.png")
    assert cli.main([PROMPT, "-i", "in.png", "--strength", "0.6", "-o", "out.png"]) == 0
    asked, = pipeline.asked
    assert asked["strength"] == 0.6 and pipeline.made[0].canvas.original.size == (60, 40)
    assert "in.png: its 60x40 pixels are scaled and cut to 128x128" in capsys.readouterr().err
    assert "Denoising strength: 0.6" in settings_in("out.png")


def test_a_picture_that_fits_needs_no_note(pipeline, tmp_path, capsys):
    Image.new("RGB", (128, 128)).save(tmp_path / "in.png")
    cli.main([PROMPT, "-i", "in.png"])
    printed = capsys.readouterr().err
    assert "scaled" not in printed and "encoding 0.12 s" in printed
    assert "37 steps of pndm" in printed                 # 0.75 of 50


def test_an_unreadable_picture_is_found_before_loading(pipeline, tmp_path, capsys):
    (tmp_path / "in.png").write_text("no picture")
    assert cli.main([PROMPT, "-i", "in.png"]) == 1
    assert "in.png: damaged, or not a picture" in capsys.readouterr().err
    assert pipeline.loaded == []


# ---- errors

@pytest.mark.parametrize(("arguments", "message"), [
    ([], "a prompt is missing"),
    (["a", "red", "apple"], "only one prompt is taken, 'red' is left over: put the whole prompt in quotes"),
    ([PROMPT, "--stpes", "3"], "unknown option --stpes, did you mean --steps?"),
    ([PROMPT, "--zzz=1"], "unknown option --zzz (all options: --help)\n"),
    ([PROMPT, "--steps"], "--steps: expected one argument"),
    ([PROMPT, "--steps", "0"], "--steps: 0 is out of range, allowed are 1 to 1000"),
    ([PROMPT, "--steps", "many"], "--steps: 'many' is no whole number, allowed are 1 to 1000"),
    ([PROMPT, "--steps", "9" * 5000], "--steps: "),
    ([PROMPT, "-W", "100"], "-W/--width: 100 is no multiple of 8, the nearest are 96 and 104"),
    ([PROMPT, "-H", "0"], "-H/--height: 0 is out of range, allowed are 8 to 8192"),
    ([PROMPT, "--cfg-scale", "nan"], "--cfg-scale/--guidance-scale: nan is out of range, allowed are numbers from 0"),
    ([PROMPT, "-i", "x", "--strength", "0"], "--strength: 0 is out of range, allowed are numbers above 0 and up to 1"),
    ([PROMPT, "-i", "x", "--strength", "0.01"], "--strength: 0.01 of 50 steps leaves no step"),
    ([PROMPT, "--strength", "0.5"], "--strength: it says how far a picture may be left, so --init-image is needed"),
    ([PROMPT, "-s", "-2"], "-s/--seed: -2 is out of range"),
    ([PROMPT, "-s", str(2**64 - 1), "-b", "2"], f"--seed: with 2 pictures it can be at most {2**64 - 2}"),
    ([PROMPT, "--subseed", str(2**64), "--subseed-strength", "1"], f"--subseed: {2**64} is out of range"),
    ([PROMPT, "--subseed", str(2**64 - 1), "--subseed-strength", "1", "-b", "2"],
     f"--subseed: with 2 pictures it can be at most {2**64 - 2}"),
    ([PROMPT, "-b", "0"], "-b/--batch-count: 0 is out of range, allowed are 1 to 9999"),
    ([PROMPT, "-t", "0"], "-t/--threads: 0 is out of range"),
    ([PROMPT, "--sampler", "Euler b"], "--sampler: 'Euler b' is unknown, did you mean euler? Known are ddpm, ddim"),
    ([PROMPT, "--sampler", "???"], "--sampler: '???' is unknown, known are ddpm, ddim"),
    ([PROMPT, "--schedule", "karas"], "--schedule: 'karas' is unknown, did you mean karras?"),
    ([PROMPT, "--schedule", "karras", "--sampler", "ddim"], "--schedule: ddim walks over the time steps of the training: the "
     "karras schedule is for lms, euler"),
    ([PROMPT, "--timestep-spacing", "even"], "--timestep-spacing: 'even' is unknown"),
    ([PROMPT, "--subseed-strength", "0.5"], "--subseed-strength: it says how much"),
    ([PROMPT, "--subseed", "0"], "--subseed: it has no influence without --subseed-strength"),
    ([PROMPT, "--backend", "torch"], "--backend: 'torch' is unknown"),
    (["caf\udce9"], "prompt: the text is not valid UTF-8"),
])
def test_a_command_that_makes_no_sense_ends_with_2_and_one_line(arguments, message, pipeline, capsys):
    assert cli.main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"npdiffusion: error: {message}")
    assert printed.count("\n") == 1 and len(printed) < 400
    assert pipeline.loaded == []


# ---- notes

@pytest.mark.parametrize(("arguments", "note"), [
    (["--eta", "0.5", "--sampler", "euler"], "--eta has no effect with euler"),
    (["--eta", "0.5"], "--eta has no effect with pndm"),
    (["-n", "red", "--cfg-scale", "1"], "--negative-prompt has no effect with --cfg-scale 1"),
    (["--guidance-rescale", "0.7", "--cfg-scale", "0.5"], "--guidance-rescale has no effect with --cfg-scale 0.5"),
    (["--subseed", "3", "--subseed-strength", "0"], "--subseed has no effect with --subseed-strength 0"),
    (["--schedule", "sgm_uniform", "--timestep-spacing", "leading"],
     "--timestep-spacing has no effect with --schedule sgm_uniform"),
    (["--no-overlay"], "--no-overlay has no effect without --mask-image or --outpaint"),
    (["--preview-every", "5"], "--preview-every has no effect without --preview"),
    (["--compare-samplers", "euler,heun", "--sampler", "ddim"], "--sampler has no effect with --compare-samplers"),
    (["--compare-samplers", "euler,heun", "--compare-steps", "1,2", "--steps", "3"],
     "--steps has no effect with --compare-steps"),
    (["--compare-samplers", "euler,heun", "--no-metadata"],
     "--no-metadata has no effect with --compare-samplers, whose sheet has no settings inside"),
])
def test_an_option_without_effect_is_noted_once(arguments, note, pipeline, capsys):
    assert cli.main([PROMPT, "-b", "2", *arguments]) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if "no effect" in line] == [note]


def test_options_without_effect_are_options():
    assert {name for name, *_ in run.NO_EFFECT} <= {*SETTINGS, *run.OPTIONS}
    assert {name for name, *_ in NO_EFFECT} <= {*SETTINGS}


def test_options_with_effect_and_settings_of_another_picture_need_no_note(pipeline, capsys):
    cli.main([PROMPT, "-n", "red", "--eta", "0.5", "--sampler", "ddim", "--guidance-rescale", "0.7", "--cfg-scale", "2",
              "--timestep-spacing", "leading", "-o", "out.png"])
    cli.main(["--like", "out.png", "--sampler", "euler", "--cfg-scale", "1"])
    assert "no effect" not in capsys.readouterr().err


def test_an_option_without_effect_in_a_file_of_prompts_is_noted(pipeline, tmp_path, capsys):
    (tmp_path / "jobs.csv").write_text("prompt,eta,sampler\na,0.5,ddim\nb,0.5,heun\nc,,euler\n")
    assert cli.main(["--prompts", "jobs.csv", "-o", "out/"]) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if "no effect" in line] == ["--eta has no effect with heun"]


def test_each_picture_is_resolved_once(pipeline, monkeypatch):
    resolved, resolve = [], pipeline.resolve
    monkeypatch.setattr(pipeline, "resolve", lambda *arguments: resolved.append(1) or resolve(*arguments))
    assert cli.main([PROMPT, "-b", "3"]) == 0
    assert len(resolved) == 3


def fail_at(pipeline, number, error):
    """Let the pipeline raise while it makes the picture of that number."""
    def act():
        if len(pipeline.asked) == number:
            raise error
    pipeline.act = act


@pytest.mark.parametrize(("error", "message"), [
    (UserError("NaN\nin unet.conv_in"), "error: NaN in unet.conv_in"),
    (KeyboardInterrupt(), "stopped"),
    (MemoryError(), "error: not enough memory"),
    (ModuleNotFoundError("No module named 'numba'", name="numba"), "error: the Python package numba is missing"),
    (ZeroDivisionError("oh"), "error: ZeroDivisionError: oh (a mistake in npdiffusion; -v shows where)"),
], ids=["UserError", "Ctrl-C", "memory", "package", "mistake"])
def test_what_ends_the_third_picture_leaves_the_first_two(error, message, pipeline, tmp_path, capsys):
    fail_at(pipeline, 3, error)
    assert cli.main([PROMPT, "-b", "5", "-s", "1"]) == (130 if message == "stopped" else 1)
    assert files(tmp_path) == ["a-red-apple-1.png", "a-red-apple-2.png"]
    *_, saved, last = capsys.readouterr().err.splitlines()
    assert saved == "2 of 5 pictures are saved"
    assert last.startswith(f"npdiffusion: {message}")


def test_pictures_are_made_even_if_nobody_reads_their_names(pipeline, tmp_path, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert cli.main([PROMPT, "-b", "2", "-s", "1"]) == 0
    assert files(tmp_path) == ["a-red-apple-1.png", "a-red-apple-2.png"]


def test_a_traceback_is_shown_with_v_alone(pipeline, capsys):
    fail_at(pipeline, 1, UserError("no"))
    cli.main([PROMPT])
    assert "Traceback" not in capsys.readouterr().err
    fail_at(pipeline, 2, UserError("no"))
    assert cli.main([PROMPT, "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_warnings_for_users_are_one_line_each_and_shown_once(pipeline, capsys):
    def act():
        warnings.warn("cut off:\n'the rest'", stacklevel=1)
        warnings.warn("overflow in something", RuntimeWarning, stacklevel=1)

    pipeline.act = act
    assert cli.main([PROMPT, "-b", "2"]) == 0
    printed = capsys.readouterr().err
    assert printed.count("npdiffusion: warning: cut off: 'the rest'\n") == 1
    assert "overflow" not in printed
    assert cli.main([PROMPT, "-v"]) == 0
    assert "npdiffusion: warning: overflow in something\n" in capsys.readouterr().err


# ---- backends

def test_an_unknown_backend_in_the_environment_is_named(pipeline, monkeypatch, capsys):
    monkeypatch.setattr(kernels, "_chosen", None)
    monkeypatch.setenv("NPDIFFUSION_BACKEND", "torch")
    assert cli.main([PROMPT]) == 1
    assert capsys.readouterr().err.startswith("npdiffusion: error: NPDIFFUSION_BACKEND: backend 'torch' is unknown")


@pytest.mark.parametrize(("arguments", "expected"), [
    ([], dict(SET_VARIABLE="8", UNSET_VARIABLE="1")),
    (["-t", "1"], dict(SET_VARIABLE="1", UNSET_VARIABLE="1")),
], ids=["default", "-t 1"])
def test_threads_limit_blas_on_the_numpy_backend(arguments, expected, pipeline, monkeypatch):
    monkeypatch.setattr(prepare, "BLAS_VARIABLES", tuple(expected))
    monkeypatch.setattr(machine, "physical_cores", lambda: 1)
    monkeypatch.setenv("UNSET_VARIABLE", "")
    monkeypatch.delenv("UNSET_VARIABLE")
    monkeypatch.setenv("SET_VARIABLE", "8")
    cli.main([PROMPT, *arguments])
    assert {name: os.environ[name] for name in expected} == expected


@pytest.mark.parametrize("cached", [True, False])
def test_compiling_is_announced_when_there_is_something_to_compile(cached, pipeline, monkeypatch, capsys):
    compiled = []

    def warm_up(report, dtype, meanwhile):
        meanwhile()
        for number, name in enumerate("abc"):
            report(number, 3)
            compiled.append(name)

    fast = types.SimpleNamespace(is_cached=lambda dtype: cached, warm_up=warm_up)
    monkeypatch.setitem(sys.modules, "npdiffusion.kernels.fast", fast)
    monkeypatch.setattr(kernels, "fast", fast, raising=False)
    assert cli.main([PROMPT, "--backend", "numba"]) == 0
    printed = capsys.readouterr().err
    assert compiled == ([] if cached else ["a", "b", "c"])
    for told in ("Compiling kernels (first run only) ...", "3/3", "compiling 0.0"):
        assert (told in printed) == (not cached)


@pytest.mark.parametrize("features, told", [
    (["AVX2"], "bfloat16 weights, widened to float32 for products"), (["AVX512-BF16"], "bfloat16 weights")])
def test_the_line_about_loading_tells_how_bfloat16_is_multiplied(features, told, pipeline, monkeypatch, capsys):
    monkeypatch.setattr(machine, "cpu_features", lambda: features)
    cli.main([PROMPT, "--dtype", "bfloat16"])
    assert f", {told}, " in capsys.readouterr().err.splitlines()[0]


# ---- about

@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(option):
    modules, output = modules_after(option)
    assert "npdiffusion" in output
    assert not modules & {"numpy", "numba", "scipy", "PIL", "tqdm", "safetensors",
                          "subprocess", "logging", "secrets", "platform", "csv"}


def test_help_names_every_option_and_sampler(capsys):
    from npdiffusion.diffusion.samplers import SAMPLERS
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    short = "-n -s -W -H -i -o -m -t -b -v"
    long = ("--negative-prompt --steps --cfg-scale --guidance-scale --seed --width --height --sampler --schedule "
            "--init-image --strength --output --model --tokenizer --lora-dir --dtype --threads --batch-count --rng --backend "
            "--vae --vae-tiling --preview --preview-path --preview-every --steps-strip --taesd --version --info "
            "--clip-skip --prompt-syntax --embedding-dir "
            "--like --no-metadata --prompts --wildcards --grid --compare-samplers --compare-steps --model-dir")
    for option in (*short.split(), *long.split(), *SAMPLERS):
        assert re.search(rf"(^|\s){re.escape(option)}\b", printed), option


def test_the_package_runs_as_a_module():
    done = run_python("-m", "npdiffusion", "--version")
    assert (done.returncode, done.stdout) == (0, f"npdiffusion {npdiffusion.__version__}\n")
    done = run_python("-m", "npdiffusion")
    assert done.returncode == 2 and done.stderr.count("\n") == 1


@pytest.fixture
def model_folder(tmp_path):
    """Files as of a model; what `--info` looks at."""
    from safetensors.numpy import save_file

    from npdiffusion.checkpoints.families import FAMILIES
    for part, stem in ((part, row.stem) for part, row in FAMILIES[0].parts.items()):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text("{}")
        save_file({"a": np.zeros((1000, 1500), np.float16)}, tmp_path / part / f"{stem}.safetensors")
    return tmp_path


@pytest.mark.parametrize("environment, words", [
    ({}, "not there yet: the first picture compiles them"), ({"NUMBA_CPU_NAME": "generic"}, "generic (by NUMBA_CPU_NAME or"),
    ({"NUMBA_CPU_FEATURES": "+sse2"}, "(by NUMBA_CPU_NAME or NUMBA_CPU_FEATURES)"),
    ({"NUMBA_DISABLE_JIT": "1"}, "nothing: NUMBA_DISABLE_JIT is set")])
def test_info_says_what_is_compiled_for_and_where_kernels_are(environment, words, model_folder, tmp_path):
    done = run_python("-m", "npdiffusion", "--info", "-m", str(model_folder), "--backend", "numba",
                      **{"NUMBA_CACHE_DIR": str(tmp_path / "cache")} | environment)
    assert words in done.stdout
    if "NUMBA_DISABLE_JIT" not in environment:
        assert f"in {tmp_path / 'cache'}{os.sep}kernels-" in done.stdout
    if environment:
        assert "bfloat16        multiplied" not in done.stdout


def test_info_describes_the_installation_and_the_model_without_numba_where_that_is_not_used(model_folder):
    modules, output = modules_after("--info", "-m", str(model_folder), "--backend", "numpy", "-t", "1")
    assert "numba" not in modules
    entries = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in output.splitlines())
    assert entries["backend"] == "numpy" and entries["threads"] == "1" and entries["model"] == str(model_folder)
    assert entries["pictures"].startswith("512x512")
    assert entries["unet"] == "1.5 million parameters, float16, 3.0 MB"
    assert {"npdiffusion", "python", "numpy", "processor", "features", "cores", "memory", "bfloat16"} <= set(entries)


def test_info_about_a_damaged_model_is_one_error_line(model_folder, capsys, monkeypatch):
    monkeypatch.setattr(kernels, "_chosen", "numba")
    (model_folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    assert cli.main(["--info", "-m", str(model_folder)]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("npdiffusion: error: ") and "empty" in printed.err and printed.err.count("\n") == 1
    assert "processor" in printed.out


def test_hyphens_and_underscores_in_names_are_alike():
    asked = options.parse_options([PROMPT, "--schedule", "align-your-steps", "--sampler", "euler-a",
                           "--prediction-type", "v-prediction"])
    request = asked.entries[0].request
    assert (request.schedule, request.sampler, request.prediction_type) == ("align_your_steps", "euler_a", "v_prediction")
