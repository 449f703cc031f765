"""The VAE of digits learns as its twin in torch does, and the command draws what it has learnt."""
import json

import numpy as np
import pytest
from PIL import Image

from npdiffusion.command import cli, prepare
from npdiffusion.training import digits, initial, loop, runs, vae_lesson
from npdiffusion.training.digit_vae import DigitVAE, drawn, probability, softplus
from npdiffusion.training.optimizers import Adam
from npdiffusion.training.tape import Tape
from tests import sample_digits
from tests.differences import agree
from tests.errors import message_of

STEPS = 6


@pytest.fixture
def folder(tmp_path):
    """A folder of IDX files"""
    (tmp_path / "digits").mkdir()
    return str(sample_digits.write(tmp_path / "digits", held_out=True))


def fresh(latent=6, seed=0):
    model = DigitVAE(latent)
    return model, initial.begin(model, np.random.default_rng(seed))


@pytest.mark.parametrize("targets", ["binary", "grey"])
def test_losses_of_training_equal_those_of_the_twin_in_torch(targets):
    """Nats per image, from the same weights, batches and noise, by Adam on either side."""
    torch = pytest.importorskip("torch")
    from tests.torch_digit_vae import TorchDigitVAE
    model, trained = fresh()
    twin = TorchDigitVAE(model)
    settings = vae_lesson.Settings("", latent=6, batch=8, targets=targets)
    grey = vae_lesson.as_grey(sample_digits.digits()[0])
    training = loop.Training(vae_lesson.loss_of(model, grey, settings), Adam(trained),
                             lambda step: vae_lesson.rate(step, 60, settings), clip=np.inf)
    optimizer, expected = torch.optim.Adam(twin.parameters()), []
    for number in range(STEPS):
        optimizer.param_groups[0]["lr"] = training.rate(number)
        rng = training.random(number)
        batch = drawn(grey[loop.shuffled(number, len(grey), 8, 0)], targets, rng)
        likelihood, divergence = twin.elbo(batch, rng.standard_normal((len(batch), 6), np.float32))
        optimizer.zero_grad()
        (divergence - likelihood).backward()
        optimizer.step()
        expected.append((divergence - likelihood).item())
    found = [training.advance()["loss"] for _ in range(STEPS)]
    assert found[-1] < found[0] - 20
    agree("training", f"VAE of digits, loss of {STEPS} steps in nats, {targets} targets", found, expected, 1e-3)
    likelihood, divergence = vae_lesson.measure(model, grey, settings)
    with torch.no_grad():
        rng = np.random.default_rng([0, 1])
        theirs = twin.elbo(drawn(grey, targets, rng), rng.standard_normal((len(grey), 6), np.float32))
    agree("training", "VAE of digits, ELBO afterwards", likelihood - divergence, float(theirs[0] - theirs[1]), 1e-2)


def test_the_divergence_is_that_of_two_gaussians():
    """Against draws of ln q − ln p, and 0 for q = p."""
    model, _ = fresh()
    x = vae_lesson.as_grey(sample_digits.digits()[0][:1])
    mean, logvar = (each[0].astype(np.float64) for each in model.encoder(x))
    z = mean + np.exp(logvar / 2) * np.random.default_rng(0).standard_normal((200_000, 6))
    drawn_value = (0.5 * (z ** 2 - (z - mean) ** 2 / np.exp(logvar) - logvar)).sum(axis=1).mean()
    assert model.elbo(x, np.zeros((1, 6), np.float32))[1] == pytest.approx(drawn_value, abs=0.01)
    for layer in (model.encoder.to_moments.weight, model.encoder.to_moments.bias):
        layer[...] = 0
    assert model.elbo(x, np.zeros((1, 6), np.float32))[1] == 0


def test_the_likelihood_is_that_of_bernoulli_pixels():
    model, _ = fresh()
    x, z = (np.random.default_rng(0).random((3, 28, 28, 1)) < 0.5).astype(np.float32), np.ones((3, 6), np.float32)
    mean, logvar = model.encoder(x)
    p = probability(model.decoder(mean + np.exp(0.5 * logvar) * z)).astype(np.float64)
    expected = np.log(np.where(x == 1, p, 1 - p)).sum(axis=(1, 2, 3)).mean()
    assert model.elbo(x, z)[0] == pytest.approx(expected, rel=1e-5)


def test_softplus_and_its_slope_are_torchs_also_far_from_zero():
    torch, x = pytest.importorskip("torch"), np.float32([-1000, -90, -20, -0.5, 0, 1e-6, 2, 30, 1000])
    tensor, tape = torch.tensor(x, requires_grad=True), Tape()
    torch.nn.functional.softplus(tensor).sum().backward()
    with tape:
        variable = tape.variable(x)
        total = softplus(variable).sum()
    tape.backward(total)
    assert (softplus(x) == softplus(variable).value).all()
    agree("VAE of digits", "softplus", softplus(x), torch.nn.functional.softplus(tensor).detach().numpy(), 1e-6, relative=True)
    agree("VAE of digits", "softplus, slope", tape.gradient(variable), tensor.grad.numpy(), 1e-6)


def test_binary_targets_are_ones_as_often_as_a_pixel_is_grey():
    grey = np.full((1, 200, 200, 1), 0.3, np.float32)
    values = drawn(grey, "binary", np.random.default_rng(0))
    assert {*np.unique(values)} == {0, 1} and values.mean() == pytest.approx(0.3, abs=0.01)
    assert drawn(grey, "grey", None) is grey


def test_first_weights_are_as_large_as_torchs():
    torch = pytest.importorskip("torch")
    model, _ = fresh()
    encoder = model.encoder
    for layer, theirs in ((encoder.conv2, torch.nn.Conv2d(32, 64, 3)), (encoder.to_moments, torch.nn.Linear(3136, 12))):
        bound = theirs.weight[0].numel() ** -0.5
        assert layer.weight.std() == pytest.approx(theirs.weight.std().item(), rel=0.05)
        assert 0.9 * bound < np.abs(layer.weight).max() <= bound and 0 < np.abs(layer.bias).max() <= bound


def test_the_command_trains_draws_measures_and_plots(folder, tmp_path, capfd):
    run = tmp_path / "run"
    arguments = ["train", "vae", "--data", folder, "-o", str(run), "--latent", "2", "--epochs", "2", "--batch", "15"]
    assert cli.main(arguments) == 0
    out, err = capfd.readouterr()
    assert out.strip() == str(run / "vae.png") and "30 pictures, 10 held out" in err
    assert "binary targets: -" in err and "nats per image" in err
    assert Image.open(run / "vae.png").size == (560, 28 * (2 + 4 + 3 + 20) + 3 * 6)
    lines = runs.lines(run)
    assert len(lines) == 4 and [line["step"] for line in lines if "held-out ELBO" in line] == [2, 4]
    assert json.loads((run / "run.json").read_text())["latent"] == 2

    weights = (run / "vae.safetensors").read_bytes()
    assert cli.main(arguments) == 0 and (run / "vae.safetensors").read_bytes() == weights       # nothing was left to do
    assert cli.main(["train", "plot", str(run)]) == 0
    assert Image.open(run / "curves.png").size[0] == 640
    assert vae_lesson.read_weights(run / "vae.safetensors", 2).decoder.conv2.bias.shape == (1,)

    assert cli.main([*arguments, "--rate", "1e-4"]) == 1
    assert "it holds a run with rate = 0.003, not 0.0001" in capfd.readouterr()[1]


def test_a_stopped_command_says_how_to_go_on(folder, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *_: False)
    assert cli.main(["train", "vae", "--data", folder, "-o", str(tmp_path / "run")]) == 1
    assert "the same command goes on" in capfd.readouterr()[1]


@pytest.mark.parametrize(("before", "told"), [
    ([True, True], None), ([True, False], "gradients (first training only)"),
    ([False], "kernels and gradients (first run only)")])
def test_the_first_training_says_that_gradients_compile(before, told, monkeypatch, capsys):
    """before: whether kernels are on disk, and then whether all are with those of gradients"""
    fast, compiled = pytest.importorskip("npdiffusion.kernels.fast"), []
    monkeypatch.setattr(fast, "is_cached", lambda dtype: before.pop(0) if len(before) > 1 else before[0])
    monkeypatch.setattr(fast, "warm_up", lambda report, dtype, begin: (begin(), compiled.append(report(0, 3))))
    assert prepare.compile_kernels("float32", gradients=True) == (told is not None)
    printed = capsys.readouterr().err
    assert len(compiled) == (told is not None) and (f"Compiling {told} ..." in printed) == (told is not None)


def test_after_that_no_kernel_of_a_training_step_is_left_to_compile():
    pytest.importorskip("npdiffusion.kernels.fast_gradients")
    from npdiffusion.kernels.codegen import compiling
    prepare.compile_kernels("float32", gradients=True)
    left = [each.name for each in compiling.declared()
            if each.dtype in (None, "float32") and each.compiled is None and not each.is_cached()]
    assert not left and any(each.name.startswith("attention.") for each in compiling.declared())


@pytest.mark.parametrize(("arguments", "said"), [
    ([], "train what?"), (["vea", "-o", "x"], "did you mean vae?"), (["vae"], "-o"), (["plot"], "RUN"),
    (["vae", "-o", "x", "--latent", "0"], "latent"), (["vae", "-o", "x", "--targets", "black"], "targets"),
    (["vae", "-o", "x", "--nonsense"], "unknown option")])
def test_mistakes_are_one_line(arguments, said, capfd):
    assert cli.main(["train", *arguments]) == 2
    err = capfd.readouterr()[1]
    assert said in err and len(err.strip().splitlines()) == 1


def test_help_lists_what_can_be_trained(capfd):
    assert cli.main(["train", "--help"]) == 0
    assert "a VAE of digits" in capfd.readouterr()[0]
    assert cli.main(["train", "vae", "--help"]) == 0
    assert "--latent" in capfd.readouterr()[0]


def test_a_run_without_a_log_or_weights_of_another_model_are_named(tmp_path):
    assert "no such file" in message_of(runs.lines, tmp_path)
    (tmp_path / "other.safetensors").write_bytes(b"{}")
    assert "other.safetensors" in message_of(vae_lesson.read_weights, tmp_path / "other.safetensors", 2)


def test_pictures_of_a_batch_larger_than_the_set_are_all_of_them():
    assert vae_lesson.per_epoch(30, 128) == 1 and digits.SIDE == 28
