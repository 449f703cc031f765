"""Previews: what the denoiser sees in each noisy state, against diffusers; the files that they go to."""
import pathlib

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, EulerDiscreteScheduler
from PIL import Image

import npdiffusion
from npdiffusion.command import cli
from npdiffusion.diffusion.denoiser import Denoiser
from npdiffusion.diffusion.schedules import NoiseSchedule
from npdiffusion.errors import UserError
from npdiffusion.models import parameters
from npdiffusion.models.configs import TinyVAEConfig, VAEConfig
from npdiffusion.models.taesd import AutoencoderTiny as OurAutoencoderTiny
from npdiffusion.models.vae import AutoencoderKL
from npdiffusion.pictures import images, preview
from npdiffusion.pictures.preview import Previews
from tests import references
from tests.differences import agree
from tests.references import SCHEDULER, channels_first, channels_last, random


class LinearVAE:
    """An autoencoder that a linear preview can equal"""
    config = VAEConfig(block_out_channels=(32, 64, 64))
    weights, offset = random(4, 3, seed=1) / 8, random(3, seed=2) / 8

    def decode(self, latents, tile=None):
        return (latents @ self.weights + self.offset).repeat(4, axis=1).repeat(4, axis=2)


# ---- what is shown

@pytest.mark.parametrize(("name", "scheduler", "options"), [
    ("ddim", DDIMScheduler, {}), ("euler", EulerDiscreteScheduler, {}),
    ("euler", EulerDiscreteScheduler, dict(prediction_type="v_prediction"))])
def test_previews_show_what_diffusers_calls_the_original_sample(name, scheduler, options):
    theirs = scheduler.from_config(SCHEDULER | options)
    theirs.set_timesteps(5)
    plan = NoiseSchedule.from_config(SCHEDULER | options).plan(name, 5, None, None)
    noise = random(1, 4, 6, 4)
    denoise = Denoiser(lambda x, t, call: np.tanh(x) * np.float32(t / 1000), plan)
    x = channels_first(noise) * theirs.init_noise_sigma
    for t, (_, x0) in zip(theirs.timesteps, plan.sample(denoise, plan.start(noise, None), None)):
        predicted = torch.tanh(theirs.scale_model_input(x, t)) * (t / 1000)
        step = theirs.step(predicted.float(), t, x)
        expected = channels_last(step.pred_original_sample)
        agree("preview", f"x̂₀ of {name}", x0, expected, 1e-5, relative=True)
        x = step.prev_sample


@torch.no_grad()
def test_a_taesd_preview_equals_diffusers():
    torch.manual_seed(0)
    theirs = references.make_demanding(AutoencoderTiny())
    ours = OurAutoencoderTiny(TinyVAEConfig())
    parameters.load(ours, {name: references.Tensor(tensor) for name, tensor in theirs.state_dict().items()}, "TAESD")
    shown, x0 = Previews("taesd", ours), random(2, 3, 4, 4)
    shown(1, 1, x0)
    expected = channels_last(theirs.decode(channels_first(x0[:1])).sample.mul(0.5).add(0.5).clamp(0, 1))
    agree("preview", "TAESD", np.asarray(shown.images[0]), (255 * expected[0]).round(), 1)


def test_a_preview_by_the_autoencoder_takes_the_tiles_that_are_chosen_for_its_picture():
    vae, x0 = references.twin(references.torch_vae(**references.TINY_VAE)), random(1, 12, 16, 4)
    asked = []
    shown = Previews("vae", vae, tile=lambda width, height: asked.append((width, height)) or 32)
    shown(1, 1, x0)
    assert asked == [(64, 48)]
    assert np.array_equal(np.asarray(shown.images[0]), np.asarray(images.to_images(vae.decode(x0, 32))[0]))
    assert not np.array_equal(np.asarray(shown.images[0]), np.asarray(images.to_images(vae.decode(x0))[0]))


def test_weights_of_v1_and_xl_are_used_for_their_latents_alone():
    for config, expected in ((VAEConfig(), preview.V1_WEIGHTS), (VAEConfig(scaling_factor=0.13025), preview.XL_WEIGHTS)):
        assert preview.known(config)[0] is expected and preview.Linear(AutoencoderKL(config)).weights is expected
    for config in TinyVAEConfig(), npdiffusion.load().vae.config, VAEConfig(scaling_factor=0.5):
        assert preview.known(config) is None


def test_a_linear_preview_of_xl_has_the_colours_that_were_published():
    """stable-diffusion.cpp's fit, rounded to four digits: a latent pixel of zeros is a bluish gray, the first channel light."""
    linear = preview.Linear(AutoencoderKL(VAEConfig(scaling_factor=0.13025)))
    shown = linear(np.array([[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 2]], np.float32)[:, None, None])
    expected = [[0.1444, -0.0333, 0.0071], [0.4027, 0.2443, 0.3368], [-0.2794, -0.3331, -0.1529]]
    np.testing.assert_allclose(shown[:, 0, 0], np.array(expected, np.float32), atol=1e-6)


def test_weights_of_v1_are_those_that_were_published():
    """The fit of "keturn", discuss.huggingface.co/t/23204: red, green and blue for each channel of a latent pixel."""
    published = [[0.298, 0.207, 0.208], [0.187, 0.286, 0.173], [-0.158, 0.189, 0.264], [-0.184, -0.271, -0.473]]
    assert np.array_equal(preview.V1_WEIGHTS, np.array(published, np.float32))
    linear = preview.Linear(AutoencoderKL(VAEConfig()))
    for channel, colour in enumerate(published):
        shown = linear(np.eye(4, dtype=np.float32)[None, None, None, channel])
        np.testing.assert_allclose(shown, np.broadcast_to(np.float32(colour), (1, 8, 8, 3)), atol=1e-6)


def test_a_fit_finds_the_weights_of_a_linear_autoencoder():
    vae = LinearVAE()
    weights, offset = preview.fit(vae)
    assert np.abs(weights - vae.weights).max() < 0.02 and np.abs(offset - vae.offset).max() < 0.02   # clipped at ±1


def test_a_linear_preview_of_the_embedded_model_comes_near_its_picture():
    pipeline = npdiffusion.load()
    shown = Previews("linear", pipeline.vae)
    image, = pipeline.generate("a red apple on a blue background", steps=8, sampler="dpm++2m", seed=1, preview=shown)
    small = [np.asarray(picture.resize((16, 16), Image.Resampling.BOX), float) for picture in (shown.images[-1], image)]
    assert np.abs(small[0] - small[1]).mean() < 0.6 * np.abs(small[1] - small[1].mean(axis=(0, 1))).mean()


# ---- when, and where it goes

def test_there_is_a_preview_every_few_steps_and_after_the_last(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(preview, "replace_png", lambda image, path, mark: written.append(path))
    shown = Previews("linear", LinearVAE(), tmp_path / "now.png", every=3)
    for _ in range(2):                                    # a second picture begins anew
        for step in range(1, 9):
            shown(step, 8, random(1, 2, 2, 4))
    assert shown.steps == [3, 6, 8] and len(shown.images) == 3 and written == 6 * [tmp_path / "now.png"]


def test_the_file_of_a_preview_is_never_half_written(tmp_path, monkeypatch):
    path = tmp_path / "now.png"
    images.replace_png(Image.new("RGB", (8, 8), "red"), path)
    images.replace_png(Image.new("RGB", (8, 8), "blue"), path)
    assert Image.open(path).getpixel((0, 0)) == (0, 0, 255)

    def fail(self, file, **options):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(UserError, match="now.png: the picture can't be written"):
        images.replace_png(Image.new("RGB", (8, 8)), path)
    assert Image.open(path).getpixel((0, 0)) == (0, 0, 255)
    assert [file.name for file in tmp_path.iterdir()] == ["now.png"]


@pytest.mark.parametrize(("options", "told"), [
    (dict(kind="liner"), "preview is 'liner': did you mean linear?"),
    (dict(kind="linear", every=0), "preview_every is 0")])
def test_previews_that_make_no_sense_are_refused(options, told):
    with pytest.raises(UserError, match=told):
        Previews(vae=LinearVAE(), **options)


def test_the_command_writes_previews_and_a_strip(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["a red apple", "--steps", "5", "--sampler", "euler", "-s", "1", "-b", "2", "--preview-every", "2",
                     "--preview-path", "now.png", "--steps-strip", "steps"]) == 0
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"a-red-apple-1.png", "a-red-apple-2.png", "now.png", "steps.png", "steps-2.png"}
    assert Image.open("now.png").size == (128, 128)
    assert Image.open("steps.png").width > 2 * 128                        # steps 2, 4 and 5
    assert "all steps are in steps-2.png" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "told"), [
    (["--preview", "tasd"], "--preview: 'tasd' is unknown, did you mean taesd?"),
    (["--preview", "taesd"], "--preview taesd: TAESD is not in Hugging Face's cache; name its file with --taesd"),
    (["--preview", "taesd", "--taesd", "no.safetensors"], "no.safetensors: no such file or folder"),
    (["--taesd", "x"], "--taesd: it is for --preview taesd"),
    (["--preview-path", "there/is/no.png"], "--preview-path: there is no folder there/is"),
    (["--steps-strip", "a.jpg"], "--steps-strip: a.jpg: previews are written as PNG"),
    (["--preview", "linear", "--preview-path", "."], "--preview-path: . is a folder")])
def test_what_is_wrong_is_found_before_the_model_is_loaded(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(npdiffusion, "load", None)
    assert cli.main(["a red apple", *arguments]) in (1, 2)
    printed = capsys.readouterr().err
    assert told in printed and printed.count("\n") == 1


def test_a_picture_of_the_user_is_not_overwritten_by_previews(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for colour in "red", "blue":                                      # the second run writes the first one's previews anew
        Image.new("RGB", (40, 30), colour).save("preview.png")
        before = pathlib.Path("preview.png").read_bytes()
        assert cli.main(["a cat", "--steps", "1", "-W", "64", "-H", "64", "--preview", "linear", "-o", "p.png"]) == 0
        assert "preview.png is no preview and stays as it is, previews go to preview-2.png" in capsys.readouterr().err
        assert pathlib.Path("preview.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("preview*")) == ["preview-2.png", "preview.png"]
