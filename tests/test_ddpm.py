"""The diffusion model of digits learns as its twin in torch does, shows how, and goes on where it was stopped."""
import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from npdiffusion.checkpoints.config_json import config
from npdiffusion.command import cli
from npdiffusion.training import ddpm_lesson, initial, loop, runs
from npdiffusion.training.digits import Digits
from tests import sample_digits
from tests.differences import agree

STEPS = 4


@pytest.fixture
def few_steps(monkeypatch):
    """Pictures that nobody looks at are drawn in five steps."""
    monkeypatch.setattr(ddpm_lesson, "SAMPLING", 5)


def settings(**changes):
    return ddpm_lesson.Settings("forty digits", **{"epochs": 1, "batch": 10, **changes})


@pytest.fixture
def forty():
    images, labels = sample_digits.digits()
    return Digits(images, labels, images, labels, "forty digits")


def test_losses_of_training_equal_those_of_the_twin_in_diffusers(forty):
    """From the same weights, batches, time steps and noise, by Adam on either side."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    lesson = ddpm_lesson.Lesson(settings(), forty.images)
    sizes = {name: value for name, value in config(lesson.unet.config).items() if not name.startswith("_")}
    twin = diffusers.UNet2DConditionModel(**sizes)
    twin.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in initial.of(lesson.unet).items()})
    optimizer = torch.optim.Adam(twin.parameters())
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    expected = []
    for number in range(STEPS):
        x0 = lesson.pixels[loop.shuffled(number, 40, 10, 0)]
        t, noise = lesson.denoising.draw(x0.shape, lesson.training.random(number))
        x0, noise = (torch.from_numpy(each).permute(0, 3, 1, 2) for each in (x0, noise))
        a = abar[torch.from_numpy(t)].view(-1, 1, 1, 1)
        x_t = (a.sqrt() * x0 + (1 - a).sqrt() * noise).float()
        loss = torch.nn.functional.mse_loss(twin(x_t, torch.from_numpy(t), torch.zeros(10, 1, 1)).sample, noise)
        optimizer.param_groups[0]["lr"] = lesson.training.rate(number)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        expected.append(loss.item())
    found = [lesson.training.advance()["loss"] for _ in range(STEPS)]
    assert found[-1] < found[0]
    agree("training", f"DDPM of digits, loss of {STEPS} steps", found, expected, 1e-5)


def test_a_stopped_run_ends_with_the_same_weights_and_the_same_picture(forty, tmp_path, few_steps):
    def stop(step, steps, values):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
    assert ddpm_lesson.run(settings(), forty, tmp_path / "stopped", stop) is None
    assert not (tmp_path / "stopped" / "ddpm.png").exists()
    for name in ("stopped", "whole"):
        assert ddpm_lesson.run(settings(), forty, tmp_path / name) == tmp_path / name / "ddpm.png"
    for name in ("ddpm.png", "strip.png", "unet/diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_command_trains_draws_and_plots_and_diffusers_opens_the_network(tmp_path, capfd, few_steps):
    diffusers = pytest.importorskip("diffusers")
    (tmp_path / "digits").mkdir()
    sample_digits.write(tmp_path / "digits", held_out=True)
    run = tmp_path / "run"
    arguments = ["train", "ddpm", "--data", str(tmp_path / "digits"), "-o", str(run), "--epochs", "2", "--batch", "15"]
    assert cli.main(arguments) == 0
    out, err = capfd.readouterr()
    assert out.strip() == str(run / "ddpm.png") and "30 pictures, 10 held out" in err
    rows = len(ddpm_lesson.milestones(4))
    assert len([*(run / "samples").iterdir()]) == rows
    whole, strip = (np.asarray(Image.open(run / name)) for name in ("ddpm.png", "strip.png"))
    assert whole.shape == (28 * (rows + ddpm_lesson.SHEET) + 6, 560)
    assert (strip == whole[:28 * rows]).all() and len(strip) == 28 * rows
    assert [line["step"] for line in runs.lines(run)] == [1, 2, 3, 4]
    assert json.loads((run / "run.json").read_text())["epochs"] == 2
    assert diffusers.UNet2DConditionModel.from_pretrained(run / "unet").config.sample_size == 28
    assert cli.main(["train", "plot", str(run)]) == 0
    assert cli.main([*arguments, "--rate", "1e-4"]) == 1
    assert "it holds a run with rate = 0.002, not 0.0001" in capfd.readouterr()[1]


def test_the_strip_s_rows_get_farther_apart_and_end_with_the_training():
    found = ddpm_lesson.milestones(1400)
    assert len(found) == 8 and found[-1] == 1400 and (np.diff(found, 2) > 0).all()
    assert ddpm_lesson.milestones(1) == [1]


def test_what_is_drawn_of_a_network_that_knows_the_answer_is_the_answer(forty):
    """ε̂ = (x − √ᾱ x₀) / √(1−ᾱ), with x₀ = 1 on the left and −1 on the right"""
    lesson = ddpm_lesson.Lesson(settings(), forty.images)
    x0 = np.where(np.arange(28) < 14, 1, -1).astype(np.float32)[:, None]

    def predict(x, t):
        signal, sigma = lesson.denoising.levels(np.full(len(x), int(t)))
        return (x - signal * x0) / sigma
    lesson.predict = predict
    assert (lesson.draw(20, 0) == np.tile(np.where(np.arange(28) < 14, 255, 0), 20)).all()
