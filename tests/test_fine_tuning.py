"""LoRAs: learnt as by PEFT, written so that diffusers and this project read them, and the networks stay as they were."""
import copy

import numpy as np
import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

import npdiffusion
from npdiffusion import kernels, loading
from npdiffusion.checkpoints.families import FAMILIES
from npdiffusion.command import cli
from npdiffusion.models import parameters
from npdiffusion.training import dreambooth, fine_tuning, initial, lora_layers, runs, textual_inversion
from npdiffusion.training.tape import Tape
from tests import folders, pairs, references
from tests.differences import agree
from tests.errors import message_of

pytestmark = pytest.mark.usefixtures("on_numpy")
SIDE = 16


@pytest.fixture
def pipeline(written):
    return npdiffusion.load(written)


@pytest.fixture
def pictures(tmp_path):
    """A folder of three pictures of two sizes, with captions"""
    rng, folder = np.random.default_rng(0), tmp_path / "pictures"
    folder.mkdir()
    for name, shape in (("a", (16, 16, 3)), ("b", (16, 16, 3)), ("c", (12, 24, 3))):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a red apple {name}")
    return folder


def settings_for(pictures, **options):
    return fine_tuning.Settings(**dict(model="tiny", data=str(pictures), size=SIDE, rank=3, steps=4, batch=2) | options)


def tuned(pipeline, settings, folder):
    return fine_tuning.LoRATuning(pipeline, settings, fine_tuning.examples(pipeline, settings, folder))


def randomised(tuning, seed=1):
    """The LoRAs with numbers in them that change results"""
    rng = np.random.default_rng(seed)
    for name, value in tuning.parameters.items():
        if name.endswith(".up"):
            value[...] = 0.2 * rng.standard_normal(value.shape)
    return tuning


def results(pipeline):
    x, context, _, ids = folders.inputs()
    return {"unet": pipeline.unet(x, 500, context), "text_encoder": pipeline.text_encoder(ids)}


@pytest.mark.parametrize("layers", ["attention", "all"])
def test_gradients_are_those_of_peft(pipeline, models, pictures, tmp_path, layers):
    """Of the same loss, on the same latents, noise and time steps."""
    settings = settings_for(pictures, layers=layers, alpha=2.0)
    tuning = randomised(tuned(pipeline, settings, tmp_path))
    unet = copy.deepcopy(models["unet"])
    names = [name for name, each in unet.named_modules() if isinstance(each, (torch.nn.Linear, torch.nn.Conv2d))]
    wanted = [name.removeprefix("unet.").removesuffix(".down") for name in tuning.parameters if name.endswith(".down")]
    assert layers != "all" or {*wanted} == {*names}
    unet.add_adapter(peft.LoraConfig(r=3, lora_alpha=2.0, target_modules=wanted))
    theirs = dict(unet.named_parameters())
    both = {f"unet.{name}.{role}": theirs[f"{name}.lora_{letter}.default.weight"]
            for name in wanted for role, letter in (("down", "A"), ("up", "B"))}
    with torch.no_grad():
        for name, tensor in both.items():
            tensor.copy_(torch.from_numpy(tuning.parameters[name]))
    seen = []
    predict = type(pipeline.unet).__call__

    def watch(unet, *arguments):
        seen.append(arguments)
        return predict(unet, *arguments)
    with pytest.MonkeyPatch.context() as patch, Tape(tuning.parameters) as tape:
        patch.setattr(type(pipeline.unet), "__call__", watch)
        loss = tuning.loss(0, np.random.default_rng(5))
    gradients = tape.backward(loss)
    (x_t, t, states), = seen
    rng, index = np.random.default_rng(5), tuning.batch(0)
    latents = np.concatenate([mean + deviation * rng.standard_normal(mean.shape, np.float32)
                              for mean, deviation in (tuning.moments[i] for i in index)])
    t, noise = tuning.denoising.draw(latents.shape, rng)
    first = references.channels_first
    prediction = unet(first(x_t), torch.from_numpy(t), torch.from_numpy(states)).sample
    weight = torch.from_numpy(tuning.denoising.weight(t))
    expected = (weight * ((prediction - first(noise)) ** 2).mean(dim=(1, 2, 3))).mean()
    expected.backward()
    agree("training", f"LoRA, {layers}: loss", float(loss), expected.item(), 1e-5)
    largest = max(float(tensor.grad.abs().max()) for tensor in both.values())
    for name, tensor in both.items():
        agree("training", f"LoRA, {layers}: gradients, of the largest", gradients[name] / largest,
              tensor.grad.numpy() / largest, 1e-4)


@pytest.mark.parametrize("spelling", lora_layers.SPELLINGS)
@pytest.mark.parametrize("layers", ["attention", "all"])
def test_a_file_gives_what_was_learnt_here_and_in_diffusers(pipeline, models, pictures, tmp_path, layers, spelling):
    settings = settings_for(pictures, layers=layers, alpha=2.0, text_encoder=True)
    before = results(pipeline)
    tuning = randomised(tuned(pipeline, settings, tmp_path))
    learnt, path = results(pipeline), tmp_path / "my.safetensors"
    tuning.detach()
    again = results(pipeline)
    fine_tuning.write(path, tuning.parameters, settings, pipeline.family, spelling)
    pipeline.load_lora_weights(path)
    theirs = StableDiffusionPipeline(**copy.deepcopy(models), tokenizer=None, scheduler=None, safety_checker=None,
                                     feature_extractor=None, requires_safety_checker=False)
    theirs.load_lora_weights(load_file(path))
    x, context, _, ids = folders.inputs()
    with torch.no_grad():
        diffusers = {"unet": references.channels_last(theirs.unet(references.channels_first(x), 500,
                                                                  torch.from_numpy(context)).sample),
                     "text_encoder": theirs.text_encoder(torch.from_numpy(ids)).last_hidden_state.numpy()}
    for part, found in results(pipeline).items():
        assert (again[part] == before[part]).all() and np.abs(learnt[part] - before[part]).max() > 1e-2
        agree("training", f"LoRA, {layers}: {spelling}'s file here, {part}", found, learnt[part], 2e-4)
        agree("training", f"LoRA, {layers}: {spelling}'s file in diffusers, {part}", learnt[part], diffusers[part], 2e-4)


@pytest.mark.parametrize("spelling", lora_layers.SPELLINGS)
def test_pictures_with_what_was_learnt_are_those_of_diffusers_within_a_level(tmp_path, spelling):
    theirs, ours = pairs.make_pair()
    rng, path = np.random.default_rng(3), tmp_path / "my.safetensors"
    attached = {part: lora_layers.attach(ours.models[part], "all", 3, 2.0, rng) for part in ("unet", "text_encoder")}
    values = lora_layers.trained(attached)
    for name, value in values.items():
        if name.endswith(".up"):
            value[...] = 0.5 * rng.standard_normal(value.shape)
    options = dict(negative_prompt=pairs.NEGATIVE, seed=7, steps=4, sampler="pndm", width=SIDE, height=SIDE, progress=False)
    found = pairs.levels(ours.generate(pairs.PROMPT, **options)[0])                     # with the layers that learn in place
    for part in attached:
        lora_layers.detach(ours.models[part])
    without = pairs.levels(ours.generate(pairs.PROMPT, **options)[0])
    fine_tuning.write(path, values, settings_for("", alpha=2.0), FAMILIES[0], spelling)
    theirs.load_lora_weights(load_file(path))
    expected = pairs.their_picture(theirs, num_inference_steps=4, width=SIDE, height=SIDE)
    assert np.abs(expected - without).max() > 10
    agree("training", f"picture with a LoRA of {spelling}'s names beside diffusers, levels of 255", found, expected, 1)


def test_dreambooth_moves_all_weights_as_torch_would_and_writes_a_model(pipeline, models, written, pictures, tmp_path):
    settings = settings_for(pictures, text_encoder=True)
    tuning = dreambooth.DreamBooth(pipeline, settings, fine_tuning.examples(pipeline, settings, tmp_path))
    assert len(tuning.parameters) == sum(len([*model.parameters()]) for name, model in models.items() if name != "vae")
    with Tape(tuning.parameters) as tape:
        loss = tuning.loss(0, np.random.default_rng(5))
    gradients = tape.backward(loss)
    rng, index = np.random.default_rng(5), tuning.batch(0)
    latents = np.concatenate([mean + deviation * rng.standard_normal(mean.shape, np.float32)
                              for mean, deviation in (tuning.moments[i] for i in index)])
    t, noise = tuning.denoising.draw(latents.shape, rng)
    theirs, first = {name: copy.deepcopy(models[name]).requires_grad_(True) for name in ("unet", "text_encoder")}, \
        references.channels_first
    states = theirs["text_encoder"](torch.from_numpy(tuning.ids[index])).last_hidden_state
    prediction = theirs["unet"](first(tuning.denoising.noised(latents, t, noise)), torch.from_numpy(t), states).sample
    weight = torch.from_numpy(tuning.denoising.weight(t))
    expected = (weight * ((prediction - first(noise)) ** 2).mean(dim=(1, 2, 3))).mean()
    expected.backward()
    agree("training", "DreamBooth: loss", float(loss), expected.item(), 1e-5)
    slopes = {f"{part}.{name.removeprefix('text_model.')}": p.grad.numpy() for part, model in theirs.items()
              for name, p in model.named_parameters()}
    largest = max(np.abs(each).max() for each in slopes.values())
    for name, gradient in gradients.items():
        agree("training", "DreamBooth: gradients, of the largest", gradient / largest, slopes[name] / largest, 1e-4)
    before = results(npdiffusion.load(written))
    values = fine_tuning.run(tuning, tmp_path / "run")
    again = results(pipeline)
    assert all((again[part] == before[part]).all() for part in before)
    dreambooth.write(tmp_path / "model", values, loading.open_checkpoint(written))
    found = initial.of(npdiffusion.load(tmp_path / "model").unet)
    assert all((found[name.removeprefix("unet.")] == value).all() for name, value in values.items() if name.startswith("unet."))
    StableDiffusionPipeline.from_pretrained(tmp_path / "model")


def test_dreambooth_takes_packed_weights_out_and_puts_them_back(written, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "_chosen", "numba")
    pipeline = npdiffusion.load(written)
    settings = settings_for(pictures)
    packed = pipeline.unet.conv_in.weight
    tuning = dreambooth.DreamBooth(pipeline, settings, fine_tuning.examples(pipeline, settings, tmp_path))
    names = {f"unet.{name}" for name, *_ in parameters.walk(pipeline.unet)}
    assert {*tuning.parameters} == names and type(packed) is not np.ndarray
    assert (tuning.parameters["unet.conv_in.weight"] == packed.unpack()).all()
    tuning.detach()
    assert pipeline.unet.conv_in.weight is packed


def test_the_command_trains_a_model_and_overwrites_nothing(written, pictures, tmp_path, capfd):
    arguments = ["train", "dreambooth", "--data", str(pictures), "-m", str(written), "-o", str(tmp_path / "model"), "--steps",
                 "2", "--size", "16"]
    assert cli.main(arguments) == 0
    assert capfd.readouterr()[0].strip() == str(tmp_path / "model") and (tmp_path / "model-run" / "log.jsonl").exists()
    assert npdiffusion.load(tmp_path / "model").generate("a red apple", steps=1, width=16, height=16)
    assert cli.main(arguments) == 1
    assert "nothing is overwritten" in capfd.readouterr()[1]


def test_training_lowers_the_loss_of_one_picture_and_leaves_the_networks_as_they_were(pipeline, pictures, tmp_path):
    for name in "bc":
        (pictures / f"{name}.png").unlink()
        (pictures / f"{name}.txt").unlink()
    settings = settings_for(pictures, steps=25, batch=1, rate=1e-2, layers="transformer", text_encoder=True)
    before = {name: [np.array(getattr(owner, attribute)) for name, owner, attribute in parameters.walk(model)]
              for name, model in pipeline.models.items()}
    found = fine_tuning.examples(pipeline, settings, tmp_path)
    values = fine_tuning.run(fine_tuning.LoRATuning(pipeline, settings, found), tmp_path / "run")
    losses = [line["loss"] for line in runs.lines(tmp_path / "run")]
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:8])
    assert all(np.abs(values[name]).max() > 0 for name in values if name.endswith(".up"))
    assert any(name.startswith("text_encoder.") for name in values)
    for name, model in pipeline.models.items():
        after = [getattr(owner, attribute) for _, owner, attribute in parameters.walk(model)]
        assert all((one == other).all() for one, other in zip(before[name], after, strict=True))


def test_pictures_of_the_class_are_drawn_once_and_weigh_what_they_shall(pipeline, pictures, tmp_path):
    settings = settings_for(pictures, prior="a red apple", prior_count=2, prior_weight=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine_tuning, "PRIOR_STEPS", 1)
        found = fine_tuning.examples(pipeline, settings, tmp_path)
        patch.setattr(pipeline, "generate", None)
        fine_tuning.examples(pipeline, settings, tmp_path)
    assert [each.weight for each in found] == [1, 1, 1, 0.5, 0.5]
    assert [each.caption for each in found[3:]] == ["a red apple"] * 2
    assert sorted(path.name for path in (tmp_path / "prior").iterdir()) == ["000.png", "001.png"]


def test_latents_are_sampled_anew_each_time_as_the_autoencoder_would(pipeline, pictures, tmp_path):
    tuning = tuned(pipeline, settings_for(pictures), tmp_path)
    mean, deviation = tuning.moments[0]
    noise = np.random.default_rng(0).standard_normal(mean.shape, np.float32)
    expected = pipeline.vae.latents(tuning.found[0].pixels[None], lambda: noise)
    agree("training", "latents from what was kept of a picture", mean + deviation * noise, expected, 1e-6)
    assert tuning.moments[2][0].shape[1:3] != mean.shape[1:3]


def test_the_command_trains_writes_and_refuses(written, pictures, tmp_path, capfd):
    file = tmp_path / "my.safetensors"
    arguments = ["train", "lora", "--data", str(pictures), "-m", str(written), "-o", str(file), "--steps", "2", "--size", "16",
                 "--rank", "2"]
    assert cli.main(arguments) == 0
    out, err = capfd.readouterr()
    assert out.strip() == str(file) and "3 pictures" in err
    assert {name.rpartition("lora_")[2].partition(".")[0] for name in load_file(file)} >= {"down", "up"}
    npdiffusion.load(written).load_lora_weights(file)
    assert cli.main([*arguments, "--rate", "0.5"]) == 1
    assert "rate = 0.001, not 0.5" in capfd.readouterr()[1]
    assert cli.main([*arguments[:-4], "--size", "17"]) == 1
    assert "no multiple of 2" in capfd.readouterr()[1]
    assert cli.main(["train", "lora", "--data", str(pictures), "-o", "my.pt"]) == 2
    assert ".safetensors" in capfd.readouterr()[1]


def test_a_word_learns_alone_by_the_gradient_at_its_places(pipeline, pictures, tmp_path):
    """Compared with finite differences of the loss."""
    settings = settings_for(pictures, prompt="a zog and a red zog", word="zog", vectors=2, begin="red")
    tuning = textual_inversion.WordTuning(pipeline, settings, fine_tuning.examples(pipeline, settings, tmp_path))
    with Tape(tuning.parameters) as tape:
        loss = tuning.loss(0, np.random.default_rng(0))
    gradients = tape.backward(loss)
    assert {*gradients} == {"0", "1"} and len(tuning.read[0][1]) == 4
    for name, value in tuning.parameters.items():
        way, kept = gradients[name] / np.linalg.norm(gradients[name]), value.copy()
        losses = []
        for sign in (-1, 1):
            value[...] = kept + sign * 2e-3 * way
            losses.append(float(tuning.loss(0, np.random.default_rng(0))))
        value[...] = kept
        assert (losses[1] - losses[0]) / 4e-3 == pytest.approx(np.linalg.norm(gradients[name]), rel=0.05)


def test_a_learnt_word_is_read_here_and_by_diffusers(pipeline, models, pictures, tmp_path):
    settings = settings_for(pictures, prompt="a zog", word="zog", vectors=2)
    tuning = textual_inversion.WordTuning(pipeline, settings, fine_tuning.examples(pipeline, settings, tmp_path))
    values = fine_tuning.run(tuning, tmp_path / "run")
    textual_inversion.write(tmp_path / "other.safetensors", values, "zog")
    pipeline.load_textual_inversion(tmp_path / "other.safetensors")
    for prompt in ("a zog", "a other"):
        agree("training", "a learnt word in a prompt", pipeline.encode_prompt(prompt), tuning.context([0]), 1e-5)
    (name, vectors), = load_file(tmp_path / "other.safetensors").items()          # as diffusers takes it: name and tensor
    assert name == "zog" and vectors.shape == (2, pipeline.text_encoder.config.hidden_size)
    assert (vectors[0] != vectors[1]).any()
    wrong = settings_for(pictures, word="zog")
    pictures = fine_tuning.examples(pipeline, wrong, tmp_path)
    assert "lacks the word" in message_of(textual_inversion.WordTuning, pipeline, wrong, pictures)


def test_other_families_are_refused(pipeline, pictures, tmp_path):
    pipeline.family = copy.copy(FAMILIES[0])
    assert "is fine-tuned here" in message_of(tuned, pipeline, settings_for(pictures), tmp_path)
