"""A Stable Diffusion from nothing: both of its trainings equal torch's, and what comes out is loaded here and by diffusers."""
import os
import signal

import numpy as np
import pytest

import npdiffusion
from npdiffusion.checkpoints.config_json import config
from npdiffusion.command import cli
from npdiffusion.training import compositions, first_stage, initial, loop, sd_lesson, vocabulary
from npdiffusion.training.digits import DIGITS, Digits
from tests import sample_digits
from tests.differences import agree
from tests.errors import message_of

STEPS = 3


def settings(**changes):
    return sd_lesson.Settings("forty digits", **{"pictures": 24, "vae_steps": 2, "steps": STEPS, "vae_batch": 4, "batch": 6,
                                                 **changes})


@pytest.fixture(scope="module")
def forty():
    images, labels = sample_digits.digits()
    return Digits(images, labels, images, labels, "forty digits")


@pytest.fixture(scope="module")
def folder(forty, tmp_path_factory):
    """A model that has learnt next to nothing"""
    return sd_lesson.run(settings(), forty, tmp_path_factory.mktemp("sd") / "model")


def twin_of(torch, kind, model):
    """Their model with our weights"""
    sizes = {name: value for name, value in config(model.config).items() if not name.startswith("_")}
    twin = kind(**sizes)
    twin.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in initial.of(model).items()})
    return twin


def steps_of(torch, training, parameters, loss, count=STEPS):
    """Their losses, with our random numbers and AdamW without decay"""
    optimizer, found = torch.optim.AdamW(parameters, weight_decay=0), []
    for number in range(count):
        value = loss(number, training.random(number))
        optimizer.param_groups[0]["lr"] = training.rate(number)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        found.append(value.item())
    return found


def test_losses_of_the_autoencoder_equal_those_of_diffusers(forty):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    images = compositions.compose(forty.images, forty.labels, 12, np.random.default_rng(0)).images
    stage = first_stage.FirstStage(settings(vae_steps=STEPS).first_stage(), images)
    twin = twin_of(torch, diffusers.AutoencoderKL, stage.vae)

    def loss(number, rng):
        x = torch.from_numpy(compositions.as_pixels(images[loop.shuffled(number, 12, 4, 0)])).permute(0, 3, 1, 2)
        posterior = twin.encode(x).latent_dist
        noise = torch.from_numpy(rng.standard_normal((4, 8, 8, 4), np.float32)).permute(0, 3, 1, 2)
        difference = twin.decode(posterior.mean + posterior.std * noise).sample - x
        divergence = 0.5 * (posterior.mean ** 2 + posterior.var - 1 - posterior.logvar).mean()
        return difference.abs().mean() + 10 * (difference ** 2).mean() + 1e-3 * divergence
    expected = steps_of(torch, stage.training, [*twin.parameters()], loss)
    agree("training", "first stage, loss", [stage.training.advance()["loss"] for _ in expected], expected, 1e-3)


def test_losses_of_text_encoder_and_unet_equal_those_of_transformers_and_diffusers(forty):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    rng = np.random.default_rng(0)
    composed = compositions.compose(forty.images, forty.labels, 12, rng)
    moments = rng.random((2, 12, 8, 8, 4), np.float32)
    lesson = sd_lesson.TextToLatents(settings(), composed.captions(DIGITS), moments, sd_lesson.tokenizer(DIGITS))
    unet = twin_of(torch, diffusers.UNet2DConditionModel, lesson.unet)
    text_encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config(lesson.text_encoder.config)))
    names = text_encoder.state_dict()                   # up to transformers 5.5 with text_model. before them
    text_encoder.load_state_dict({name if name in names else f"text_model.{name}": torch.from_numpy(value.copy())
                                  for name, value in initial.of(lesson.text_encoder).items()}, strict=False)
    abar = torch.from_numpy(lesson.schedule.alphas_cumprod)

    def loss(number, rng):
        index = loop.shuffled(number, 12, 6, 0)
        x0 = moments[0, index] + moments[1, index] * rng.standard_normal((6, 8, 8, 4), np.float32)
        t, noise = lesson.denoising.draw(x0.shape, rng)
        ids = torch.from_numpy(np.where(rng.random((6, 1)) < 0.1, lesson.empty, lesson.ids[index]))
        x0, noise = (torch.from_numpy(each).permute(0, 3, 1, 2) for each in (x0, noise))
        t = torch.from_numpy(t)
        a = abar[t].view(-1, 1, 1, 1)
        x_t, v = (a.sqrt() * x0 + (1 - a).sqrt() * noise).float(), (a.sqrt() * noise - (1 - a).sqrt() * x0).float()
        return ((unet(x_t, t, text_encoder(ids).last_hidden_state).sample - v) ** 2).mean()
    expected = steps_of(torch, lesson.training, [*unet.parameters(), *text_encoder.parameters()], loss)
    agree("training", "text encoder and UNet, loss", [lesson.training.advance()["loss"] for _ in expected], expected, 1e-5)


def test_diffusers_loads_the_folder_and_draws_the_same_picture(folder):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    with npdiffusion.load(folder) as pipeline:
        assert pipeline.size == (32, 32) and pipeline.default_sampler == "ddim"
        assert pipeline.default_guidance == sd_lesson.GUIDANCE
        latents = np.random.default_rng(0).standard_normal((1, 8, 8, 4), np.float32)
        ours = pipeline.generate("a three and an eight", latents=latents, steps=5, output_type="np", progress=False)
    expected = theirs("a three and an eight", latents=torch.from_numpy(latents).permute(0, 3, 1, 2), num_inference_steps=5,
                      guidance_scale=sd_lesson.GUIDANCE, output_type="np").images
    agree("training", "a picture of the model that was trained, levels", 255 * ours, 255 * expected, 1)


@pytest.mark.parametrize("stage", ["first", "second"])
def test_a_run_that_was_stopped_in_either_stage_ends_with_the_same_weights(folder, forty, tmp_path, stage):
    def stop(step, steps, values):
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
    assert sd_lesson.run(settings(), forty, tmp_path, **{stage: stop}) is None
    assert not (tmp_path / "model_index.json").exists()
    assert sd_lesson.run(settings(), forty, tmp_path) == tmp_path
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        name = f"{part}.safetensors"
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_model_of_another_origin_is_left_as_it_is(forty, tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    assert "wasn't trained by this command" in message_of(sd_lesson.run, settings(), forty, tmp_path)
    assert [*tmp_path.iterdir()] == [tmp_path / "model_index.json"]


def test_damaged_latents_and_other_settings_are_named(folder, forty, tmp_path):
    assert "pictures = 24, not 25" in message_of(sd_lesson.run, settings(pictures=25), forty, folder)
    path = tmp_path / "latents.safetensors"
    path.write_bytes((folder / "first-stage" / "latents.safetensors").read_bytes())
    assert "not the latents of this training" in message_of(first_stage.kept, path, 23, None)


def test_latents_have_a_deviation_of_one(forty):
    images = compositions.compose(forty.images, forty.labels, 12, np.random.default_rng(0)).images
    stage = first_stage.FirstStage(settings().first_stage(), images)
    mean, spread = first_stage.encoded(stage.vae, images, size=5)
    z = mean + spread * np.random.default_rng(0).standard_normal((200, *mean.shape), np.float32)
    assert first_stage.deviation(mean, spread) == pytest.approx(z.std(), rel=0.01)


def test_minutes_become_steps_and_a_run_keeps_those_it_has_begun_with(forty, tmp_path, monkeypatch):
    monkeypatch.setattr(sd_lesson, "seconds", lambda training: 0.5)
    planned = sd_lesson.planned(settings(), forty, tmp_path, 10)
    assert (planned.vae_steps, planned.steps) == (300, 900)
    (tmp_path / "run.json").write_text('{"vae_steps": 7, "steps": 8}')
    planned = sd_lesson.planned(settings(), forty, tmp_path, 10)
    assert (planned.vae_steps, planned.steps) == (7, 8)


def test_a_step_is_timed_by_the_clock(forty):
    """Of a training that waits: 0.05 s a step"""
    import time
    import types
    assert sd_lesson.seconds(types.SimpleNamespace(advance=lambda: time.sleep(0.05))) == pytest.approx(0.05, abs=0.045)


def test_the_command_makes_a_folder_that_draws(tmp_path, capfd):
    (tmp_path / "digits").mkdir()
    sample_digits.write(tmp_path / "digits", held_out=True)
    run = tmp_path / "run"
    assert cli.main(["train", "sd", "--data", str(tmp_path / "digits"), "-o", str(run), "--vae-steps", "1", "--steps", "1",
                     "--batch", "2"]) == 0
    assert capfd.readouterr()[0].strip() == str(run / "sd.png")
    assert cli.main(["a seven", "-m", str(run), "--steps", "1", "-o", str(tmp_path / "seven.png")]) == 0
    assert cli.main(["train", "plot", str(run)]) == 0


# ---- what is learnt from

def test_compositions_show_what_their_captions_say(forty):
    composed = compositions.compose(forty.images, forty.labels, 200, np.random.default_rng(0))
    assert {len(each) for each in composed.classes} == {1, 2} and {*np.ravel(composed.classes[0])} <= {*range(10)}
    for image, classes in zip(composed.images, composed.classes):
        columns = np.flatnonzero((image >= compositions.INK).any(axis=0))
        if len(classes) == 2:                           # apart, each in its half
            assert not (image[:, 15:17] >= compositions.INK).any() and columns[0] < 15 and columns[-1] > 16
        else:
            assert 8 < columns.mean() < 24
    assert compositions.caption((3, 8), DIGITS) == "a three and an eight"
    assert compositions.caption((1,), DIGITS) == "a one"


def test_every_word_of_a_caption_is_one_piece_and_transformers_reads_the_vocabulary_alike(tmp_path):
    transformers = pytest.importorskip("transformers")
    from npdiffusion.checkpoints.conversion import write_tokenizer
    ours = vocabulary.learn(["a seven", "a three and an eight"], 16)
    assert [ours.decode([each]) for each in ours.ids("a three and an eight")] == ["a", "three", "and", "an", "eight"]
    write_tokenizer(tmp_path, ours)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    for text in ("a three and an eight", "seventy eights, äh!", ""):
        assert theirs(text, padding="max_length")["input_ids"] == ours.encode(text).tolist()


def test_merges_join_the_most_frequent_pair_first():
    ours = vocabulary.learn(["seven ten ten ten"], 16)
    assert next(iter(ours.ranks)) == ("e", "n</w>")
