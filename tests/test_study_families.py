"""A look inside pictures of XL, and of a model that a ControlNet leads: maps equal those of hooks in diffusers."""
import dataclasses

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline

import npdiffusion
from npdiffusion.errors import UserError
from npdiffusion.models import flops
from npdiffusion.pipeline import StableDiffusionPipeline
from npdiffusion.study import attention_maps, filmstrip, trace
from npdiffusion.study.looking import finish, look_at
from npdiffusion.study.making import resolved_for
from npdiffusion.study.report import page
from npdiffusion.study.words import Words
from tests import pairs, relatives
from tests.controlnets import picture, torch_controlnet
from tests.differences import agree
from tests.hooks import hooked, of_level
from tests.pairs import NEGATIVE, PROMPT
from tests.relatives import XL

ASKED = dict(negative_prompt=NEGATIVE, steps=3, seed=7, width=48, height=32, guidance_scale=5.0)


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    """(diffusers' XL, ours)"""
    folder, theirs = tmp_path_factory.mktemp("xl") / "model", relatives.theirs(XL)
    theirs.save_pretrained(folder)
    return theirs, npdiffusion.load(folder)


@pytest.fixture(scope="module")
def led(tmp_path_factory):
    """(diffusers' pipeline with a ControlNet, ours)"""
    folder, control, (theirs, ours) = tmp_path_factory.mktemp("control") / "net", torch_controlnet(), pairs.make_pair()
    control.save_pretrained(folder)
    theirs = StableDiffusionControlNetPipeline(**theirs.components, controlnet=control, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = pairs.SAMPLERS["ddim"].from_config(theirs.scheduler.config)
    ours.load_controlnet(folder)
    return theirs, ours


def settings(name):
    return ASKED | (dict(control_image=picture(), control_scale=0.7, sampler="ddim") if name == "led" else {})


@pytest.mark.parametrize("look", [trace, attention_maps, filmstrip], ids=lambda look: look.__name__)
@pytest.mark.parametrize("name", ["xl", "led"])
def test_the_picture_is_that_made_without_looking(name, look, request):
    ours = request.getfixturevalue(name)[1]
    expected, = ours.generate(PROMPT, progress=False, **settings(name))
    image, = look(ours, PROMPT, **settings(name)).images
    assert np.array_equal(np.asarray(image), np.asarray(expected)) and np.asarray(image).std() > 10


def test_maps_of_xl_are_those_of_hooks_in_diffusers(xl):
    theirs, ours = xl
    own = theirs.unet.attn_processors
    try:
        seen = hooked(theirs.unet)
        theirs(PROMPT, negative_prompt=NEGATIVE, height=32, width=48, num_inference_steps=3, guidance_scale=5.0,
               generator=torch.Generator().manual_seed(7))
    finally:
        theirs.unet.set_attn_processor(own)
    found = attention_maps(ours, PROMPT, **ASKED)
    compare(found, seen, "XL", {level.shape[-2:] for level in found.levels})
    assert found.layers == [sum(steps[0].shape[2] == h * w for steps in seen.values())
                            for h, w in (level.shape[-2:] for level in found.levels)]


def test_maps_beside_a_controlnet_are_those_of_hooks_in_diffusers(led):
    theirs, ours = led
    seen = hooked(theirs.unet)
    pairs.their_picture(theirs, image=picture(), num_inference_steps=3, guidance_scale=5.0, controlnet_conditioning_scale=0.7)
    found = attention_maps(ours, PROMPT, **settings("led"))
    compare(found, seen, "ControlNet", {(8, 12), (4, 6), (2, 3)})


def compare(found, seen, what, sizes):
    assert {level.shape[-2:] for level in found.levels} == sizes and len(found.spans) == 3
    count = len(found.words) - 3                                              # beside start, end and padding
    for level in found.levels:
        expected = of_level(seen, *level.shape[-2:], heads=level.shape[1])
        agree("study", f"attention maps, {what}", level[:, :, :count + 2], expected[:, :, :count + 2], 1e-5)
        agree("study", f"attention to padding, {what}", level[:, :, -1], expected[:, :, count + 2:].sum(axis=2), 1e-5)
    assert found.values < 1e-6 and found.rows < 1e-5


def test_where_the_text_encoders_of_xl_read_different_texts_a_column_is_both(xl):
    resolved = resolved_for(xl[1], "a cat", prompt_2="a dog on grass", steps=2)
    words = Words(xl[1], resolved)
    texts = ["<start>", "a", "cat/dog", "on/<end>", "grass/<padding>", "<end>", "<padding>"]
    assert [word.text for word in words.list] == texts
    assert (words.group(0, 0, 77).sum(axis=1) == 1).all()                     # each position belongs to one column
    with pytest.raises(UserError, match="no word 'cow'"):
        attention_maps(xl[1], "a cat", steps=1, width=32, height=32).of("cow")


def test_a_prompt_that_changes_does_so_at_the_same_call_for_both_encoders_of_xl(xl):
    found = attention_maps(xl[1], "a [cat:dog:0.5]", prompt_2="a house", steps=4, seed=1, sampler="euler", width=32, height=32)
    cat, dog = found.columns("cat/house"), found.columns("dog/house")
    assert found.levels[0][:3, :, cat].min() > 0 and found.levels[0][3:, :, cat].max() == 0
    assert found.levels[0][:3, :, dog].max() == 0 and found.levels[0][3:, :, dog].min() > 0
    agree("study", "attention of a place, XL", found.array.sum(axis=3), np.ones_like(found.array[:, :, :, 0]), 1e-5)


def test_a_picture_that_a_refiner_ends_is_refused(xl, monkeypatch):
    """Its last steps are another model's, whose layers have the same names"""
    resolve = xl[1].resolve

    def refined(*arguments):
        resolved = resolve(*arguments)
        return dataclasses.replace(resolved, passes=[way._replace(refining=way.plan) for way in resolved.passes])
    monkeypatch.setattr(xl[1], "resolve", refined)
    with pytest.raises(UserError, match="load it without its refiner"):
        trace(xl[1], PROMPT, **ASKED)


@pytest.mark.parametrize("name", ["xl", "led"])
def test_a_report_shows_every_part_and_each_step(name, request):
    ours: StableDiffusionPipeline = request.getfixturevalue(name)[1]
    look = finish(ours, look_at(ours, resolved_for(ours, "a red apple", **settings(name))))
    assert look.same and len(look.without) == 3
    assert [seen.t for seen in look.seen] == [step.t for step in look.resolved.passes[0].plan.levels.values()][:3]
    assert max(row["relative"] for row in look.sums) < 1e-5
    parts = {layer.partition(".")[0] for layer in look.trace.layers}
    assert parts == {*ours.models, *(["controlnet"] if name == "led" else [])}
    assert len(page(ours, look)) < 3_000_000


def test_the_layers_of_a_controlnet_have_its_names_and_are_counted_by_themselves(led):
    theirs, ours = led
    found = trace(ours, PROMPT, keep="controlnet.controlnet_mid_block", **settings("led"))
    known = {f"controlnet.{name}" for name, _ in theirs.controlnet.named_modules()}
    named = {name for name in found.layers if name.startswith("controlnet.")}
    operations = ("attention", "silu", "timestep_embedding")
    assert {name for name in named if name.rpartition(".")[2] not in operations} <= known and len(named) > 50
    assert [tensor.shape[1:] for tensor in found.tensors["controlnet.controlnet_mid_block"]] == [(2, 3, 64)] * 3
    counted = sum(layer.flop for name, layer in found.layers.items() if name.startswith("unet."))
    assert counted == pytest.approx(2 * sum(flops.unet(ours.unet.config, 8, 12).values()), rel=0.05)
