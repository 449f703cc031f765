"""The laboratory for samplers, and the commands that look inside."""
import json

import numpy as np
import pytest
from PIL import Image

import npdiffusion
from npdiffusion.command import cli
from npdiffusion.study import lab
from npdiffusion.study.report import lab_page
from tests.differences import agree

ASKED = ["a red apple", "--steps", "2", "-s", "3", "-W", "32", "-H", "32", "--sampler", "ddim"]
ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpm2": 2, "dpm++2m": 2, "deis": 2, "pndm": 2, "unipc": 3, "lms": 3}


# ---- the toy

def test_the_denoiser_of_the_mixture_is_the_mean_of_what_noise_may_hide():
    """Against Monte Carlo: the mean of x₀, weighted by how likely each gives the state."""
    random = np.random.default_rng(0)
    x0 = lab.MEANS[random.integers(3, size=200_000)] + lab.SPREAD * random.standard_normal((200_000, 2))
    for alpha, sigma in ((1.0, 0.8), (0.6, 0.8)):
        x = np.array([[0.3, -0.2], [-0.5, 0.4]])
        weights = np.exp(-np.square(x[:, None] - alpha * x0).sum(axis=2) / (2 * sigma**2))
        expected = (weights[..., None] * x0).sum(axis=1) / weights.sum(axis=1, keepdims=True)
        agree("study", "denoiser of the mixture", lab.denoised(x, alpha, sigma), expected, 0.01)


def test_both_scales_of_a_state_have_one_denoiser():
    x = np.random.default_rng(0).standard_normal((5, 2))
    agree("study", "denoiser on both scales", lab.denoised(0.6 * x, 0.6, 0.8), lab.denoised(x, 1.0, 0.8 / 0.6), 1e-12)


@pytest.mark.parametrize("name", lab.deterministic())
def test_errors_fall_with_the_order_that_is_stated(name):
    errors = lab.errors(name, (64, 128), points=16)
    assert lab.order((64, 128), errors) == pytest.approx(ORDERS[name], abs=0.6) and errors[-1] < 0.03


def test_every_sampler_ends_near_the_clouds():
    noise = np.random.default_rng(1).standard_normal((64, 2))
    for name in lab.SAMPLERS:
        states, plan = lab.walk(name, 24, noise)
        near = np.linalg.norm(states[-1][:, None] - lab.MEANS, axis=2).min(axis=1)
        assert len(states) == len(plan) + 1 and np.median(near) < 3 * lab.SPREAD, name


def test_a_page_shows_each_sampler_and_asks_for_nothing(monkeypatch):
    monkeypatch.setattr(lab, "STEPS", (8, 16))
    text = lab_page.lab_page()
    assert all(f"<b>{name}</b>" in text for name in lab.SAMPLERS) and "default-src 'none'" in text
    assert text.count("<svg") == len(lab.SAMPLERS) + 1 and "://" not in text


# ---- commands

@pytest.fixture
def at_the_command(pair, monkeypatch, tmp_path, on_numpy):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(npdiffusion, "load", lambda *arguments, **settings: pair[1])
    return tmp_path


def test_the_lab_of_the_command_draws_a_model_too(at_the_command, monkeypatch, capsys):
    monkeypatch.setattr(lab, "STEPS", (8, 16))
    monkeypatch.setattr(lab, "MODEL_STEPS", (2, 3))
    monkeypatch.setattr(lab, "MODEL_REFERENCE", 4)
    monkeypatch.setattr(lab.model_errors, "__defaults__", ((2, 3), 4, 1))
    assert cli.main(["lab", "-o", "lab"]) == 0
    assert capsys.readouterr().out.strip() == "lab.html" and "On a real model" in (at_the_command / "lab.html").read_text()


def test_a_trace_is_printed_or_written_as_json_for_chrome_and_as_tensors(at_the_command, capsys):
    assert cli.main(["trace", *ASKED]) == 0
    assert "unet.mid_block.resnets.1.conv2" in capsys.readouterr().out
    assert cli.main(["trace", *ASKED, "--json", "layers", "--chrome", "trace.json", "--tensor", "unet.conv_out"]) == 0
    assert capsys.readouterr().out.splitlines() == ["unet.conv_out.npy", "layers.json", "trace.json"]
    rows = json.loads((at_the_command / "layers.json").read_text())
    assert {row["name"] for row in rows} >= {"unet.conv_in", "vae.decoder.conv_out"}
    assert json.loads((at_the_command / "trace.json").read_text())["traceEvents"]
    assert np.load(at_the_command / "unet.conv_out.npy").shape == (2, 2, 8, 8, 4)
    assert cli.main(["trace", *ASKED, "--until", "unet.conv_in"]) == 0
    assert np.load(at_the_command / "unet.conv_in.npy").shape == (1, 1, 8, 8, 32)
    assert cli.main(["trace", *ASKED, "--tensor", "unet.conv_inn"]) == 1
    assert "did you mean unet.conv_in?" in capsys.readouterr().err


def test_attention_is_written_as_a_sheet_a_map_and_numbers(at_the_command, capsys):
    assert cli.main(["attention", *ASKED, "--json", "words.json"]) == 0
    words = json.loads((at_the_command / "words.json").read_text())["words"]
    agree("study", "maps in JSON sum to 1", np.sum([word["map"] for word in words], axis=0), np.ones((8, 8)), 1e-4)
    assert Image.open("attention.png").width > 100
    assert cli.main(["attention", *ASKED, "--word", "apple", "-o", "apple.png"]) == 0
    assert Image.open("apple.png").size == (32, 32)
    assert cli.main(["attention", *ASKED, "--word", "appel"]) == 1
    assert "did you mean apple?" in capsys.readouterr().err


def test_a_filmstrip_has_as_many_frames_as_are_asked_for(at_the_command):
    assert cli.main(["filmstrip", *ASKED, "--frames", "2"]) == 0
    assert Image.open("filmstrip.png").size[0] == 2 * 32 + 3 * 8


@pytest.mark.parametrize(("arguments", "message"), [
    (["trace", "a", "--chrome", "trace.txt"], "--chrome: the name trace.txt should end in .json"),
    (["attention", "a", "-o", "nowhere/a.png"], "there is no folder nowhere"),
    (["filmstrip", "a", "-o", "."], "is a folder")])
def test_names_that_files_cannot_have_are_found_before_loading(arguments, message, pipeline, capsys):
    assert cli.main(arguments) == 1
    assert message in capsys.readouterr().err and not pipeline.loaded


def test_settings_that_cannot_be_are_answered_at_once(pipeline, capsys):
    assert cli.main(["filmstrip", "a", "--frames", "51"]) == 2 and cli.main(["trace", "a", "--schedule", "karras", "--sampler",
                                                                            "ddim", "--eta", "2"]) == 2
    assert "--eta" in capsys.readouterr().err
