"""The recipe of the embedded model trains without a framework: as torch would, bit for bit after an interruption, and what
it exports is a model that draws."""
import ast
import pathlib

import numpy as np
import pytest
from PIL import Image

import npdiffusion
from npdiffusion.checkpoints.safetensors_file import read_file
from npdiffusion.diffusion.samplers.consistency import lcm
from npdiffusion.training import initial, loop, runs
from npdiffusion.training.optimizers import muon_and_adamw
from npdiffusion.weights.recipe import (
    encode,
    export,
    models,
    scenes,
    settings,
    train_control,
    train_few_steps,
    train_unet,
    train_vae,
    training,
)
from tests.differences import agree

STEPS, RATE = 5, 1e-3
FRAMEWORKS = {"torch", "diffusers", "transformers", "peft", "tensorflow", "jax", "keras", "tinygrad", "mlx"}
SPRITES = {name: Image.new("RGBA", (80, 60 + 5 * i), (40 * i, 200 - 30 * i, 90, 255)) for i, name in enumerate(
    ("cat", "dog", "fox", "bear", "panda", "frog"))}
TINY = dict(
    UNET=settings.UNET | dict(block_out_channels=(32, 32), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                              up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=32, norm_num_groups=8),
    TEXT=settings.TEXT | dict(hidden_size=32, intermediate_size=64, projection_dim=32, num_hidden_layers=1,
                              num_attention_heads=2),
    VAE=settings.VAE | dict(block_out_channels=(16, 16, 16, 16), norm_num_groups=8),
    VAE_TRAINING=settings.VAE_TRAINING | dict(steps=3, decoder_steps=2, batch=2),
    UNET_TRAINING=settings.UNET_TRAINING | dict(legs=(3, 5), batch=3, warm_up=2, decay=2, first_scenes=8, scenes=16,
                                                more_every=2),
    HINT=(4, 8, 8, 8),
    CONTROL_TRAINING=settings.CONTROL_TRAINING | dict(steps=3, decay=1, batch=2, first_scenes=4, scenes=8, more_every=2,
                                                      iou_every=3, watched=1),
    FEW_STEPS_TRAINING=settings.FEW_STEPS_TRAINING | dict(steps=3, decay=1, batch=2, rank=2, scenes=4, judge_every=3,
                                                          share=1 / 150))


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The recipe with networks that take no time, of six subjects, in folders of its own; nothing is shipped yet"""
    for name, value in TINY.items():
        monkeypatch.setattr(settings, name, value)
    monkeypatch.setattr(settings, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(settings, "PROGRESS", tmp_path / "progress.json")
    monkeypatch.setattr(scenes, "NAMES", tuple(SPRITES))
    for module in (train_vae, encode, train_control, train_few_steps):
        monkeypatch.setattr(module, "load_sprites", lambda font: SPRITES)
    for module in (train_unet, train_control, encode):
        monkeypatch.setattr(module, "PIECE", 4)
    monkeypatch.setattr(train_vae, "unseen_scenes", lambda count, sprites: np.full((2, 64, 64, 3), 90, np.uint8))
    return tmp_path


def run_all(folder, *more):
    """All parts of the plan, one after the other      → whether they are done"""
    options = ["--font", "none", "--runs", str(folder), *more]
    done = train_vae.main(["--until", "encoder", *options]) and train_unet.main(options) and train_vae.main(options)
    if done and not (folder / "model").exists():
        export.main(["--runs", str(folder)])
    return done and train_control.main(options) and train_few_steps.main(options)


def states(folder):
    return {(part, name): tensor() for part in training.PARTS
            for name, tensor in training.kept_state(part)[0].items()}


def test_nothing_in_the_recipe_imports_a_framework():
    root = pathlib.Path(settings.__file__).parent.parent
    found = {}
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {name: path for each in names for name in each.split(".")}
    assert "safetensors" in found and "npdiffusion" in found
    assert not FRAMEWORKS & found.keys(), {name: found[name].name for name in FRAMEWORKS & found.keys()}


# ---- beside torch

def from_torch(models_of_torch, ours):
    """{name: torch parameter} under our names, and {name: our array} with the same numbers"""
    theirs = {f"{folder}.{name.removeprefix('text_model.')}": value for folder, model in models_of_torch.items()
              for name, value in model.named_parameters()}
    mine = training.named(ours)
    assert theirs.keys() == mine.keys()
    for name, value in mine.items():
        value[...] = theirs[name].detach().numpy()
    return theirs, mine


def compared(what, loss, mine, theirs, losses, plain):
    """Our steps beside torch's; biases of keys have no slope, so that theirs go where rounding leads them"""
    optimizer = muon_and_adamw(mine, plain)
    ours = loop.Training(lambda step, _: loss(step), optimizer, lambda step: RATE)
    found = [ours.advance()["loss"] for _ in range(STEPS)]
    agree("recipe", f"{what}: losses of {STEPS} steps", found, losses, 1e-4, relative=True)
    for name, value in mine.items():
        if not name.endswith(("k_proj.bias", "to_k.bias")):
            agree("recipe", f"{what} after {STEPS} steps: {name}", value, theirs[name].detach().numpy(), 2e-5)


def test_unet_and_text_encoder_learn_as_in_torch(tiny):
    torch = pytest.importorskip("torch")
    from tests import references, torch_recipe
    theirs = dict(text_encoder=references.torch_text_encoder(**settings.TEXT), unet=references.torch_unet(**settings.UNET))
    ours = dict(text_encoder=models.new_text_encoder(), unet=models.new_unet())
    named, mine = from_torch(theirs, ours)
    noising, rng = train_unet.denoising(), np.random.default_rng(0)
    z0 = rng.standard_normal((STEPS, 4, 8, 8, 4), np.float32)
    ids = models.token_ids(["a cat on a red background", "", "two dogs at night", "a small blue fox"])
    drawn = [noising.draw(each.shape, rng) for each in z0]
    abars = torch.from_numpy(noising.schedule.alphas_cumprod).float()

    def torch_loss(step):
        t, noise = drawn[step]
        x, e = (torch.from_numpy(each).permute(0, 3, 1, 2) for each in (z0[step], noise))
        return torch_recipe.unet_loss(theirs["unet"], theirs["text_encoder"], x, torch.from_numpy(ids), torch.from_numpy(t), e,
                                      abars, settings.UNET_TRAINING["snr_cap"])

    plain = settings.UNET_TRAINING["plain"]
    losses = torch_recipe.stepped(named, torch_loss, RATE, STEPS, plain)
    compared("UNet", lambda step: train_unet.loss_of(ours["unet"], ours["text_encoder"], z0[step], ids, *drawn[step], noising),
             mine, named, losses, plain)


def test_autoencoder_learns_as_in_torch(tiny):
    torch = pytest.importorskip("torch")
    from tests import references, torch_recipe
    theirs, ours = dict(vae=references.torch_vae(**settings.VAE)), dict(vae=models.new_vae())
    named, mine = from_torch(theirs, ours)
    rng, plan = np.random.default_rng(0), settings.VAE_TRAINING
    x = rng.uniform(-1, 1, (STEPS, 2, 16, 24, 3)).astype(np.float32)
    noise = rng.standard_normal((STEPS, 2, 2, 3, 4), np.float32)

    def torch_loss(step):
        pictures, e = (torch.from_numpy(each[step]).permute(0, 3, 1, 2) for each in (x, noise))
        return torch_recipe.vae_loss(theirs["vae"], pictures, e, plan["kl"], plan["squared"])

    losses = torch_recipe.stepped(named, torch_loss, RATE, STEPS, plan["plain"])
    compared("VAE", lambda step: train_vae.loss_of(ours["vae"], x[step], noise[step], plan["kl"], plan["squared"]),
             mine, named, losses, plan["plain"])


def test_controlnet_learns_as_in_torch(tiny):
    torch = pytest.importorskip("torch")
    from tests import controlnets, references, torch_recipe
    upwards = "sample_size", "out_channels", "up_block_types"
    sizes = {name: value for name, value in settings.UNET.items() if name not in upwards}
    theirs, frozen = controlnets.torch_controlnet(hint=settings.HINT, **sizes), references.torch_unet(**settings.UNET)
    controlnet, unet = train_control.new_controlnet(), models.new_unet()
    from_torch({"unet": frozen}, {"unet": unet})
    named, mine = from_torch({"controlnet": theirs}, {"controlnet": controlnet})
    named, mine = ({name: value for name, value in each.items() if not name.startswith(train_control.FROZEN)}
                   for each in (named, mine))
    noising, rng = train_unet.denoising(), np.random.default_rng(0)
    z0, hints = rng.standard_normal((STEPS, 2, 8, 8, 4), np.float32), rng.random((STEPS, 2, 64, 64, 3), np.float32)
    states = rng.standard_normal((STEPS, 2, 7, 32), np.float32)
    drawn = [noising.draw(each.shape, rng) for each in z0]
    abars = torch.from_numpy(noising.schedule.alphas_cumprod).float()

    def torch_loss(step):
        t, noise = drawn[step]
        x, e, picture = (torch.from_numpy(each).permute(0, 3, 1, 2) for each in (z0[step], noise, hints[step]))
        return torch_recipe.controlnet_loss(theirs, frozen, x, torch.from_numpy(states[step]), picture, torch.from_numpy(t), e,
                                            abars, settings.UNET_TRAINING["snr_cap"])

    plain = settings.CONTROL_TRAINING["plain"]
    losses = torch_recipe.stepped(named, torch_loss, RATE, STEPS, plain)
    compared("ControlNet", lambda step: train_control.loss_of(controlnet, unet, z0[step], states[step], hints[step],
                                                              *drawn[step], noising), mine, named, losses, plain)


# ---- few steps, by a distribution of one point c: its paths are straight, v̂ = (√ᾱ x − c) / √(1−ᾱ)

class OnePoint:
    """The UNet of a model that knows nothing but c; guidance changes nothing for it"""
    def __init__(self, c, noising):
        self.c, self.noising = c, noising

    def __call__(self, x, t, states):
        signal, sigma = self.noising.levels(t)
        return np.concatenate([(signal * x - self.c) / sigma] * (len(states) // len(x)))


def test_a_state_before_another_lies_on_the_same_path_and_both_jump_to_its_end(tiny):
    noising, rng = train_unet.denoising(), np.random.default_rng(0)
    c, states = np.float32(0.7), rng.standard_normal((6, 77, 32), np.float32)
    unet = OnePoint(c, noising)
    consistency = train_few_steps.Consistency(unet, unet, guidance=2.0)
    noise, t = rng.standard_normal((6, 4, 4, 4), np.float32), np.array([19, 39, 259, 499, 759, 999])
    earlier = consistency.before(noising.noised(c, t, noise), t, states, states[:1])
    assert earlier[1].tolist() == [0, 0, 159, 399, 659, 899]
    agree("recipe", "a state one step of DDIM before", earlier[0], noising.noised(c, earlier[1], noise), 2e-5)
    for x, at in (noising.noised(c, t, noise), t), earlier:
        at_end = np.where((at == 0).reshape(-1, 1, 1, 1), x, c)         # f(x, 0) = x
        agree("recipe", "jump to the end of a path", consistency.jump(x, at, states), at_end, 2e-5)


def test_jumps_are_those_of_the_sampler(tiny):
    """One step of `lcm` from t = 999 is f, of which the sampler says no more than c_skip x + c_out x̂₀."""
    rng = np.random.default_rng(1)
    x, v = rng.standard_normal((2, 2, 4, 4, 4), np.float32)
    consistency = train_few_steps.Consistency(lambda *_: v, None, 2.0)
    t = np.array([999, 999])
    x0 = consistency.ends(x, t, v)[0]
    expected, = (picture for picture, _ in lcm(lambda *_: x0, x, [(999, 0.0, 1.0)], None))
    agree("recipe", "jump beside the sampler's", consistency.jump(x, t, np.zeros((2, 1, 32), np.float32)), expected, 1e-6)


# ---- runs

def test_the_whole_plan_goes_on_bit_for_bit_where_it_was_stopped_and_draws(tiny, monkeypatch):
    assert run_all(tiny / "whole")
    whole = states(tiny / "whole")
    export.main(["--runs", str(tiny / "whole")])
    picture, = npdiffusion.load(tiny / "whole" / "model").generate("a cat on a red background", steps=2, seed=1)
    assert picture.size == (settings.PIXELS, settings.PIXELS)

    seconds = loop.train                                     # each call ends after one step
    monkeypatch.setattr(training.loop, "train", lambda run, kept, end, *more, **options: seconds(
        run, kept, min(end, (training.steps_behind(kept.folder.name)) + 1), *more, **options) and run.step >= end)
    calls = 0
    while not run_all(tiny / "parts"):
        calls += 1
    assert calls > 5
    parts = states(tiny / "parts")
    assert parts.keys() == whole.keys() and all((parts[name] == whole[name]).all() for name in whole)


def test_training_goes_on_from_the_shipped_model_and_exports_it_unchanged(tiny, monkeypatch):
    run_all(tiny / "first")
    export.main(["--runs", str(tiny / "first"), "--to", str(tiny / "shipped")])
    monkeypatch.setattr(settings, "MODEL", tiny / "shipped")
    settings.PROGRESS.write_text('{"vae": 5, "unet": 3, "controlnet": 3, "few_steps": 3}')
    settings.RUNS = tiny / "second"
    assert [training.begun(part) for part in training.PARTS] == [5, 3, 5, 3, 3]
    export.main(["--runs", str(tiny / "second"), "--to", str(tiny / "again")])
    for path in (tiny / "shipped").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tiny / "again" / path.relative_to(tiny / "shipped")).read_bytes(), path.name
    assert train_vae.main(["--runs", str(tiny / "second")])                   # it is done
    assert train_unet.main(["--runs", str(tiny / "second")])
    assert [line["step"] for line in runs.lines(tiny / "second" / "unet")] == [4, 5]
    assert not (tiny / "second" / "vae").exists()


def test_an_export_can_go_a_share_of_the_way_from_the_shipped_weights_to_the_learnt_ones(tiny, monkeypatch):
    run_all(tiny / "first")
    export.main(["--runs", str(tiny / "first"), "--to", str(tiny / "shipped")])
    monkeypatch.setattr(settings, "MODEL", tiny / "shipped")
    settings.PROGRESS.write_text('{"vae": 5, "unet": 3, "controlnet": 3, "few_steps": 3}')
    assert train_unet.main(["--runs", str(tiny / "second")])
    for share in "0", "0.25", "1":
        export.main(["--runs", str(tiny / "second"), "--to", str(tiny / share), "--share", share])
    for file in "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors":
        before, none, some, all_of_it = (
            {name: np.asarray(tensor(), np.float32) for name, tensor in read_file(tiny / folder / file).items()}
            for folder in ("shipped", "0", "0.25", "1"))
        assert all((none[name] == before[name]).all() for name in before)
        learnt = {name.split(".", 2)[2]: tensor() for name, tensor in training.kept_state("unet")[0].items()
                  if name.startswith(f"average.{file.split('/')[0]}.")}
        assert learnt.keys() == before.keys() and any((learnt[name] != before[name]).any() for name in before)
        for name, value in learnt.items():
            agree("recipe", f"all of the way: {name}", all_of_it[name], value, 1e-3, relative=True)
            agree("recipe", f"a quarter of the way: {name}", some[name], 0.75 * before[name] + 0.25 * value, 1e-3,
                  relative=True)


def test_rate_warms_up_stays_and_falls_to_zero_at_the_end_of_the_plan():
    plan = dict(end=1000, fresh=0, warm_up=100, decay=200)
    assert training.rate_at(9, **plan) == pytest.approx(0.1)
    assert training.rate_at(99, **plan) == training.rate_at(800, **plan) == 1.0
    assert training.rate_at(900, **plan) == pytest.approx(0.5)
    assert training.rate_at(1000, **plan) == training.rate_at(1300, **plan) == pytest.approx(0.0)
    assert training.rate_at(509, **plan | dict(fresh=500)) == pytest.approx(0.1)     # optimisers that begin anew warm up


def test_the_rate_falls_at_the_end_of_each_leg_and_warms_up_again(monkeypatch):
    monkeypatch.setattr(settings, "UNET_TRAINING", dict(legs=(100, 300), warm_up=10, decay=50))
    shares = [train_unet.rate(step, 0) for step in range(300)]
    assert shares[9] == shares[50] == shares[109] == shares[250] == 1.0
    assert max(shares[98:101]) < 0.11 and shares[299] < 0.01
    assert train_unet.rate(150, begun=150) == pytest.approx(0.1)


def test_the_bank_of_scenes_grows_anew_in_each_leg(monkeypatch):
    monkeypatch.setattr(settings, "UNET_TRAINING", dict(legs=(100, 300), first_scenes=2000, scenes=4500, more_every=50))
    assert [train_unet.scenes_at(step) for step in (0, 49, 50, 99, 100, 149, 150, 299)] == [
        2000, 2000, 3000, 3000, 2000, 2000, 3000, 4500]


def test_weights_of_the_loss_are_those_of_its_formula():
    noising, t = train_unet.denoising(), np.array([0, 400, 999])
    abar = noising.schedule.alphas_cumprod[t]
    snr = abar / (1 - abar)
    agree("recipe", "weights of the loss", noising.weight(t), np.minimum(snr + 1, 5) / (snr + 1), 1e-6)


def test_the_same_step_has_the_same_batch(tiny):
    one, two = (train_vae.batch_of(SPRITES, 7) for _ in range(2))
    assert all((a == b).all() for a, b in zip(one, two))
    assert one[0].shape == (2, 64, 64, 3) and one[1].shape == (2, 8, 8, 4) and -1 <= one[0].min() < one[0].max() <= 1
    other, _ = train_vae.batch_of(SPRITES, 8)
    assert (one[0] != other).any()


def test_fresh_weights_are_random_and_the_same_each_time(tiny):
    first, second = (training.named(training.fill(dict(vae=models.new_vae()))) for _ in range(2))
    assert all((first[name] == second[name]).all() for name in first)
    assert initial.of(models.new_vae()).keys() == {name.removeprefix("vae.") for name in first}
    assert first["vae.decoder.conv_in.weight"].std() > 0.01
