"""Inpainting, outpainting and hires fix from the command line, with a pipeline that paints in one colour."""
import types

import numpy as np
import pytest
from PIL import Image

from npdiffusion.command import cli
from npdiffusion.models.configs import VAEConfig
from tests.fake_pipeline import PROMPT, settings_in


@pytest.fixture
def files(pipeline, tmp_path):
    """in.png of 128 × 128 and mask.png of 64 × 64 pixels in the folder at work"""
    Image.new("RGB", (128, 128), "blue").save(tmp_path / "in.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "mask.png")
    return pipeline


def test_a_mask_reaches_the_pipeline_at_the_size_of_the_picture(files, capsys):
    assert cli.main([PROMPT, "-i", "in.png", "--mask", "mask.png", "--mask-blur", "2", "--invert-mask", "-o", "out.png"]) == 0
    asked, = files.asked
    mask = files.made[0].canvas.mask
    assert mask.size == (128, 128) and np.asarray(mask).mean() == pytest.approx(127.5, abs=1)
    assert (asked["mask_blur"], asked["invert_mask"], asked["strength"]) == (2, True, 1)
    assert "mask.png: its 64x64 pixels are resized to the picture's 128x128" in capsys.readouterr().err
    assert "Denoising strength: 1, Mask mode: Inpaint not masked, Mask blur: 2, RNG" in settings_in("out.png")


def test_only_the_masked_part_is_named_as_in_the_web_interface(files, capsys):
    assert cli.main([PROMPT, "-i", "in.png", "--mask", "mask.png", "--only-masked", "32", "--strength", "0.6", "-W", "64",
                     "-o", "out.png"]) == 0
    assert files.asked[0]["padding_mask_crop"] == 32
    assert "in.png: what is masked, and 32 pixels around it, is painted at 64x128" in capsys.readouterr().err
    assert "Denoising strength: 0.6, Inpaint area: Only masked, Masked area padding: 32, RNG" in settings_in("out.png")


def test_no_overlay_reaches_the_pipeline(files):
    assert cli.main([PROMPT, "-i", "in.png", "--mask", "mask.png", "--no-overlay"]) == 0
    assert files.made[0].canvas.overlay is False


def test_outpainting_makes_the_picture_larger(files, capsys):
    assert cli.main([PROMPT, "-i", "in.png", "--outpaint", "right=64, top=8", "-o", "out.png"]) == 0
    asked, = files.asked
    assert (asked["width"], asked["height"], asked["outpaint"], asked["strength"]) == (192, 136, "top=8,right=64", 1)
    assert "scaled" not in capsys.readouterr().err
    assert 'Size: 192x136' in settings_in("out.png") and 'Mask blur: 4, Outpaint: "top=8,right=64"' in settings_in("out.png")


def test_outpainting_a_picture_of_an_odd_size_scales_it_with_a_note(files, tmp_path, capsys):
    Image.new("RGB", (101, 90)).save(tmp_path / "odd.png")
    assert cli.main([PROMPT, "-i", "odd.png", "--outpaint", "left=64"]) == 0
    assert (files.asked[0]["width"], files.asked[0]["height"]) == (168, 88)
    assert "odd.png: its 101x90 pixels, extended to 165x90, are scaled and cut to 168x88" in capsys.readouterr().err


def test_an_odd_size_is_rounded_to_what_the_model_takes(files, tmp_path, monkeypatch):
    config = VAEConfig(block_out_channels=(32, 32, 32))                     # 4 pixels to a latent pixel
    monkeypatch.setattr(files, "vae", types.SimpleNamespace(config=config))
    Image.new("RGB", (101, 90)).save(tmp_path / "odd.png")
    assert cli.main([PROMPT, "-i", "odd.png", "--outpaint", "left=64"]) == 0
    assert (files.asked[0]["width"], files.asked[0]["height"]) == (164, 88)


def test_hires_fix_is_named_as_in_the_web_interface(files, capsys):
    assert cli.main([PROMPT, "--steps", "20", "--hires", "1.5", "--hires-steps", "10", "--hires-upscaler", "lanczos",
                     "-o", "out.png"]) == 0
    asked, = files.asked
    assert (asked["hires"], asked["hires_strength"], asked["hires_steps"], asked["hires_upscaler"]) == (1.5, 0.7, 10, "lanczos")
    assert "128x128 pixels, again at 1.5 times that size, 30 steps of pndm" in capsys.readouterr().err
    assert ("Denoising strength: 0.7, Hires upscale: 1.5, Hires steps: 10, Hires upscaler: Lanczos, RNG"
            in settings_in("out.png"))


@pytest.mark.parametrize("arguments", [
    ["-i", "in.png", "--mask", "mask.png", "--mask-blur", "2", "--invert-mask", "--only-masked", "8"],
    ["-i", "in.png", "--outpaint", "left=64"], ["--hires", "2", "--hires-strength", "0.5", "--hires-upscaler", "lanczos"]])
def test_the_settings_inside_a_picture_are_followed(arguments, files):
    cli.main([PROMPT, *arguments, "-o", "out.png"])
    inputs = [value for i, value in enumerate(arguments) if {"-i", "--mask"} & set(arguments[max(i - 1, 0):i + 1])]
    assert cli.main(["--like", "out.png", *inputs]) == 0
    first, second = files.asked
    names = ("mask_blur", "invert_mask", "padding_mask_crop", "outpaint", "strength", "width", "hires", "hires_strength",
             "hires_steps", "hires_upscaler")
    assert [first.get(name) for name in names] == [second.get(name) for name in names]


def test_settings_of_a_mask_that_is_not_given_are_noted(files, capsys):
    cli.main([PROMPT, "-i", "in.png", "--mask", "mask.png", "--mask-blur", "2", "-o", "out.png"])
    cli.main([PROMPT, "--hires", "2", "-o", "large.png"])
    capsys.readouterr()
    assert cli.main(["--like", "out.png", "-i", "in.png"]) == 0 and cli.main(["--like", "large.png", "-i", "in.png"]) == 0
    notes = capsys.readouterr().err
    assert "out.png: Mask blur: 2 is not followed (it was made from a mask, to be given with --mask-image)" in notes
    assert "large.png: Hires upscale: 2 is not followed (it is for pictures made from words alone)" in notes
    assert "hires" not in files.asked[-1] and "mask_blur" not in files.asked[-2]


@pytest.mark.parametrize("arguments, message", [
    (["--mask", "mask.png"], "--mask-image: it says where a picture is repainted, so --init-image is needed too"),
    (["--outpaint", "left=8"], "--outpaint: it says by how much a picture is extended, so --init-image is needed too"),
    (["-i", "in.png", "--mask-blur", "4"],
     "--mask-blur: it says how a mask is feathered, so --mask-image or --outpaint is needed"),
    (["-i", "in.png", "--invert-mask"], "--invert-mask: it says how a mask is understood, so --mask-image is needed too"),
    (["-i", "in.png", "--only-masked", "8"], "--padding-mask-crop: it says how much around a mask is looked at"),
    (["-i", "in.png", "--mask", "mask.png", "--only-masked", "8", "--no-overlay"], "--no-overlay: a part can't be painted"),
    (["-i", "in.png", "--mask", "mask.png", "--mask-blur", "-1"], "--mask-blur: -1 is out of range"),
    (["-i", "in.png", "--outpaint", "left=10"], "--outpaint: left is 10: it must be a multiple of 8, the nearest is 8"),
    (["-i", "in.png", "--outpaint", "lft=8"], "--outpaint: 'lft' is no side, did you mean left?"),
    (["-i", "in.png", "--outpaint", "8"], "--outpaint: '8' is no side"),
    (["-i", "in.png", "--outpaint", "left=99999"], "--outpaint: left is 99999: it must be a number of pixels up to 8192"),
    (["--hires", "1"], "--hires: 1 is out of range, allowed are numbers above 1 and up to 8"),
    (["--hires", "2", "-i", "in.png"], "--hires: it is for pictures made from words alone"),
    (["--hires-steps", "4"], "--hires-steps: it says how long a picture is denoised again, so --hires is needed too"),
    (["--hires", "2", "--hires-upscaler", "lanzcos"], "--hires-upscaler: 'lanzcos' is unknown, did you mean lanczos?")])
def test_what_makes_no_sense_is_one_line_before_anything_is_loaded(arguments, message, files, capsys):
    assert cli.main([PROMPT, *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("npdiffusion: error: ") and message in printed and printed.count("\n") == 1
    assert files.loaded == []


def test_a_mask_that_cannot_be_read_is_named_before_anything_is_loaded(files, tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no picture")
    assert cli.main([PROMPT, "-i", "in.png", "--mask", "bad.png"]) == 1
    printed = capsys.readouterr().err
    assert "bad.png: damaged, or not a picture" in printed and printed.count("\n") == 1
    assert files.loaded == [] and sorted(path.name for path in tmp_path.iterdir()) == ["bad.png", "in.png", "mask.png"]
