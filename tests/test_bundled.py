"""What comes with the embedded model: a ControlNet and a LoRA, by name, offline, as diffusers draws with them."""
import json

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, LCMScheduler, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from PIL import Image, ImageDraw
from safetensors import safe_open

import npdiffusion
from npdiffusion.checkpoints import bundled, controlnets
from npdiffusion.command import cli
from npdiffusion.errors import UserError
from npdiffusion.weights.recipe import models, settings, train_control, train_few_steps, training
from tests import references
from tests.differences import agree
from tests.pairs import levels

PROMPT, SEED = "a cat on a blue background", 3
MOST_BYTES = 12_000_000               # of both together
SIDE = settings.PIXELS


@pytest.fixture(scope="module")
def outline():
    """An ellipse in the upper left, white on black"""
    picture = Image.new("RGB", (SIDE, SIDE))
    ImageDraw.Draw(picture).ellipse((10, 16, 70, 60), outline="white", width=3)
    return picture


def theirs(kind, **parts):
    pipeline = kind.from_pretrained(settings.MODEL, torch_dtype=torch.float32, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def their_picture(pipeline, **options):
    return levels(pipeline(PROMPT, generator=torch.Generator().manual_seed(SEED), height=SIDE, width=SIDE, **options).images[0])


@pytest.mark.filterwarnings("ignore")
def test_diffusers_follows_the_scribble_to_the_same_picture(outline):
    controlnet = ControlNetModel.from_pretrained(settings.MODEL / "controlnet", torch_dtype=torch.float32)
    expected = their_picture(theirs(StableDiffusionControlNetPipeline, controlnet=controlnet), image=outline,
                             num_inference_steps=3, guidance_scale=2.0)
    pipeline = npdiffusion.load(control="scribble")
    image, = pipeline.generate(PROMPT, seed=SEED, steps=3, control_image=outline, progress=False)
    agree("embedded", "picture led by a scribble, 3 steps", levels(image), expected, 1)
    pipeline.load_controlnet(None)
    free, = pipeline.generate(PROMPT, seed=SEED, steps=3, progress=False)
    assert np.abs(levels(free) - expected).mean() > 5


@pytest.mark.filterwarnings("ignore")
def test_diffusers_draws_the_same_picture_with_the_lora_in_few_steps():
    pipeline = theirs(StableDiffusionPipeline)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    pipeline.load_lora_weights(settings.MODEL / "lora", weight_name="lcm.safetensors")
    expected = their_picture(pipeline, num_inference_steps=4, guidance_scale=1.0)
    ours = npdiffusion.load()
    image, = ours.generate(f"{PROMPT} <lora:lcm>", seed=SEED, sampler="lcm", progress=False)       # 4 steps, no guidance
    agree("embedded", "picture with the LoRA, 4 steps of lcm", levels(image), expected, 1)
    plain, = ours.generate(PROMPT, seed=SEED, sampler="lcm", progress=False)
    assert np.abs(levels(plain) - expected).mean() > 0.2


def test_both_are_small_and_have_the_sizes_and_names_of_the_recipe():
    files = [*bundled.CONTROLNETS["scribble"].glob("*.safetensors"), *bundled.LORAS.values()]
    assert len(files) == 2 and sum(path.stat().st_size for path in files) <= MOST_BYTES
    found = {}
    for path in files:
        with safe_open(path, framework="np") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}
    assert {value.dtype for value in found.values()} == {np.dtype(np.float16)}
    expected = {name.partition(".")[2]: value.shape for name, value in
                training.named({"controlnet": train_control.new_controlnet()}).items()}
    expected |= {name: value.shape for name, value in
                 train_few_steps.spelled(train_few_steps.attach(models.new_unet())).items()}
    assert {name: value.shape for name, value in found.items()} == expected
    config = json.loads((settings.MODEL / "controlnet" / "config.json").read_text())
    assert config["conditioning_embedding_out_channels"] == [*settings.HINT] and config["_class_name"] == "ControlNetModel"


def test_other_models_refuse_both_in_one_line():
    pipeline, message = npdiffusion.load(), "^{} comes with the embedded model and goes with no other: name a file [a-z ]*$"
    pipeline.check_prompts([("a cat <lora:lcm>", "")])
    other = pipeline.unet.config = references.twin(references.torch_unet(**references.TINY_UNET)).config
    with pytest.raises(UserError, match=message.format("scribble")):
        controlnets.open_controlnet("scribble", other, pipeline.family)
    pipeline.unload_lora_weights()
    with pytest.raises(UserError, match=message.format("lcm")):
        pipeline.check_prompts([("a cat <lora:lcm>", "")])


def test_a_file_that_is_called_so_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scribble").write_bytes(b"not a ControlNet")
    with pytest.raises(UserError, match="^scribble: "):
        npdiffusion.load(control="scribble")
    (tmp_path / "lcm.safetensors").write_bytes(b"not a LoRA")
    with pytest.raises(UserError, match="lcm.safetensors: "):
        npdiffusion.load(lora_dir=tmp_path).generate("a cat <lora:lcm>", steps=1, progress=False)


def test_a_name_that_nothing_has_is_told_what_there_is(tmp_path):
    with pytest.raises(UserError, match=r"^scrible: no such file or folder .*the embedded model has scribble"):
        npdiffusion.load(control="scrible")


def test_the_lists_name_both(capsys):
    for command in ["--info"], ["models"], ["subjects"]:
        assert cli.main(command) == 0
        said = capsys.readouterr().out
        assert "--control scribble" in said and "<lora:lcm>" in said, command
