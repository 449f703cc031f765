"""Mistakes in what models are given: one line says what it was and what is expected, and nothing is computed."""
import re

import numpy as np
import pytest

import npdiffusion
from npdiffusion import kernels
from npdiffusion.models import configs, controlnet, taesd
from npdiffusion.models.conditioning import Conditioning
from npdiffusion.training.tape import Tape
from tests.references import random

LATENTS, IMAGES, STATES = random(1, 16, 8, 4), random(1, 32, 16, 3), random(2, 77, 160, seed=1)


@pytest.fixture(scope="module")
def pipeline():
    return npdiffusion.load()


@pytest.fixture(autouse=True)
def no_products(monkeypatch):
    """A mistake is found before the first product."""
    def product(*arguments, **options):
        raise AssertionError("something was computed")
    for name in ("conv2d", "linear", "embedding"):
        monkeypatch.setattr(kernels, name, product)


def refused(call, kind, message):
    with pytest.raises(kind, match="^" + re.escape(message) + "$") as caught:
        call()
    assert type(caught.value) is kind and "\n" not in str(caught.value)


PICTURES = {
    "channels first": (lambda x: x.transpose(0, 3, 1, 2), ValueError, ": channels come last, x.transpose(0, 2, 3, 1)"),
    "no batch axis": (lambda x: x[0], ValueError, ": the batch axis is missing, x[None]"),
    "channels first, no batch axis": (lambda x: x[0].transpose(2, 0, 1), ValueError,
                                      ": the batch axis is missing, and channels come last, x.transpose(1, 2, 0)[None]"),
    "too many channels": (lambda x: np.concatenate([x, x], axis=-1), ValueError, ""),
    "two axes": (lambda x: x[0, 0], ValueError, ""),
    "float64": (lambda x: x.astype(float), TypeError, ": x.astype(np.float32)"),
    "integers": (lambda x: x.astype(np.uint8), TypeError, ""),
    "a list": (lambda x: x.tolist(), TypeError, ""),
    "a text": (lambda x: "a cat", TypeError, ""),
}


@pytest.mark.parametrize("mistake", PICTURES)
def test_latents_and_images_of_another_kind_or_shape(pipeline, mistake):
    change, kind, hint = PICTURES[mistake]
    tiny = taesd.AutoencoderTiny(configs.TinyVAEConfig())
    for call, right, what in [
            (lambda x: pipeline.unet(x, 10, STATES), LATENTS, "latents"),
            (lambda x: pipeline.unet(x, 10, Conditioning(STATES)), LATENTS, "latents"),
            (pipeline.vae.decode, LATENTS, "latents"), (tiny.decode, LATENTS, "latents"),
            (pipeline.vae.encode, IMAGES, "images"), (tiny.latents, IMAGES, "images"),
            (lambda x: pipeline.vae.latents(x, None), IMAGES, "images")]:
        wrong = change(right)
        wanted = f"(N, H, W, {right.shape[-1]})"
        if kind is ValueError:
            message = f"{what} are {wrong.shape}, but {wanted} is expected{hint}"
        elif isinstance(wrong, np.ndarray):
            message = f"{what} are {wrong.dtype}, but {wanted} of float32 is expected{hint}"
        else:
            message = f"{what} are {mistake}, but an array {wanted} of float32 is expected"
        refused(lambda call=call, wrong=wrong: call(wrong), kind, message)


def test_a_controlnet_looks_at_its_input_as_the_unet_does():
    config = configs.UNetConfig(block_out_channels=(32, 32), cross_attention=(True, False), heads=(4, 4),
                                cross_attention_dim=160, norm_num_groups=8)
    model = controlnet.ControlNetModel(config)
    refused(lambda: model(LATENTS[0], 10, STATES, None), ValueError,
            "latents are (16, 8, 4), but (N, H, W, 4) is expected: the batch axis is missing, x[None]")


@pytest.mark.parametrize(("wrong", "kind", "message"), [
    ("a cat", TypeError, "are a text, but an array (N, S, 160) of float32 is expected: "
                         "text_encoder(tokenizer.encode(text)[None]) gives them"),
    (np.zeros((1, 77), np.int64), TypeError, "are int64, but (N, S, 160) of float32 is expected: "
                                             "text_encoder(tokenizer.encode(text)[None]) gives them"),
    (np.zeros((1, 77, 160)), TypeError, "are float64, but (N, S, 160) of float32 is expected: x.astype(np.float32)"),
    (STATES[0], ValueError, "are (77, 160), but (N, S, 160) is expected: the batch axis is missing, x[None]"),
    (random(1, 77, 768), ValueError, "are (1, 77, 768), but (N, S, 160) is expected: "
                                         "they are of a text encoder of another width"),
], ids=["a text", "ids", "float64", "no batch axis", "another width"])
def test_hidden_states_of_another_kind_or_shape(pipeline, wrong, kind, message):
    for conditioning in (wrong, Conditioning(wrong)):
        refused(lambda given=conditioning: pipeline.unet(LATENTS, 10, given), kind, f"hidden states of prompts {message}")


@pytest.mark.parametrize(("wrong", "kind", "message"), [
    ("a cat", TypeError, "ids are a text, but an array (N, T) of integers, T at most 77, is expected: "
                         "tokenizer.encode(text)[None]"),
    ([[1, 2]], TypeError, "ids are a list, but an array (N, T) of integers, T at most 77, is expected: "
                          "np.stack([tokenizer.encode(text), ...])"),
    (np.zeros(77, np.int64), ValueError, "ids are (77,), but (N, T) of integers, T at most 77, is expected: the batch axis is "
                                         "missing, x[None]"),
    (np.zeros((1, 78), np.int64), ValueError, "ids are (1, 78), but (N, T) of integers, T at most 77, is expected"),
    (np.zeros((1, 77), np.float32), TypeError, "ids are float32, but (N, T) of integers, T at most 77, is expected"),
], ids=["a text", "a list", "no batch axis", "too long", "not integers"])
def test_ids_of_another_kind_or_shape(pipeline, wrong, kind, message):
    refused(lambda: pipeline.text_encoder(wrong), kind, message)
    refused(lambda: pipeline.text_encoder.hidden_states(wrong), kind, message)


def test_a_variable_of_a_tape_is_looked_at_as_the_array_that_it_stands_for(pipeline):
    tape = Tape()
    with tape:
        refused(lambda: pipeline.unet(tape.variable(LATENTS[0]), 10, STATES), ValueError,
                "latents are (16, 8, 4), but (N, H, W, 4) is expected: the batch axis is missing, x[None]")
        refused(lambda: pipeline.unet(LATENTS, 10, tape.variable(STATES[0])), ValueError,
                "hidden states of prompts are (77, 160), but (N, S, 160) is expected: the batch axis is missing, x[None]")
