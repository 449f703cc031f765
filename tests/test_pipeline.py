"""The whole way, prompt to picture, against diffusers' own pipelines with the same seed."""
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionImg2ImgPipeline
from PIL import Image

from npdiffusion import kernels
from npdiffusion.diffusion import noise
from npdiffusion.errors import UserError
from npdiffusion.kernels import machine
from npdiffusion.pipeline import StableDiffusionPipeline as OurPipeline
from tests import references
from tests.differences import agree
from tests.pairs import NEGATIVE, PROMPT, SAMPLERS, SCHEDULE, levels, their_picture
from tests.references import SCHEDULER


@pytest.mark.parametrize("name", SAMPLERS)
def test_text_to_image_equals_diffusers_within_one_level(pair, name):
    theirs, ours = pair
    theirs.scheduler = SAMPLERS[name].from_config(SCHEDULER)
    expected = their_picture(theirs, num_inference_steps=10, guidance_scale=5.0, height=32, width=48)
    image, = ours.generate(PROMPT, NEGATIVE, steps=10, guidance_scale=5.0, sampler=name, seed=7, width=48, height=32)
    assert expected.std() > 10          # a picture, not a flat field that anything would equal
    agree("whole pictures", f"from words, {name}, levels of 255", levels(image), expected, 1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_image_to_image_equals_diffusers_within_one_level(pair, name):
    theirs, ours = pair
    start = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8))
    pipeline = StableDiffusionImg2ImgPipeline(**theirs.components, requires_safety_checker=False)
    pipeline.scheduler = SAMPLERS[name].from_config(SCHEDULER)
    pipeline.set_progress_bar_config(disable=True)
    expected = their_picture(pipeline, image=start, strength=0.6, num_inference_steps=10, guidance_scale=5.0)
    image, = ours.generate(PROMPT, NEGATIVE, steps=10, guidance_scale=5.0, sampler=name, seed=7, width=48, height=32,
                           init_image=start, strength=0.6)
    agree("whole pictures", f"from a picture, {name}, levels of 255", levels(image), expected, 1)


def test_the_whole_way_on_each_backend(each_backend, pair):
    theirs, _ = pair
    theirs.scheduler = PNDMScheduler.from_config(SCHEDULER)
    ours = OurPipeline(pair[1].tokenizer, *(references.twin(getattr(theirs, name)) for name in ("text_encoder", "unet", "vae")),
                       SCHEDULE, "tiny")
    expected = their_picture(theirs, num_inference_steps=6, height=40, width=40)
    found, = ours.generate(PROMPT, NEGATIVE, steps=6, seed=7, width=40, height=40)
    agree("whole pictures", f"on {each_backend}, levels of 255", levels(found), expected, 1)


def test_each_picture_of_a_batch_depends_on_its_own_seed_alone(pair):
    ours = pair[1]
    together = ours.generate(PROMPT, steps=3, sampler="euler_a", seed=3, count=3)
    alone, = ours.generate(PROMPT, steps=3, sampler="euler_a", seed=5)
    assert [image.info["seed"] for image in together] == [3, 4, 5]
    assert np.abs(levels(together[2]) - levels(alone)).max() <= 1
    assert np.abs(levels(together[0]) - levels(alone)).max() > 20


@pytest.mark.parametrize("rng", ["torch", "a1111"])
@pytest.mark.parametrize("sampler", ["ddim", "dpm++sde"])
def test_variations_have_one_seed_and_sub_seeds_that_count_on(pair, rng, sampler):
    ours, settings = pair[1], dict(steps=2, sampler=sampler, seed=3, rng=rng, subseed_strength=0.3)
    together = ours.generate(PROMPT, subseed=8, count=2, **settings)
    alone, = ours.generate(PROMPT, subseed=9, **settings)
    assert [(image.info["seed"], image.info["subseed"]) for image in together] == [(3, 8), (3, 9)]
    assert np.abs(levels(together[1]) - levels(alone)).max() <= 1
    assert np.abs(levels(together[0]) - levels(alone)).max() > 5
    unchanged, = ours.generate(PROMPT, subseed=9, **settings | {"subseed_strength": 0})
    assert np.array_equal(levels(unchanged), levels(ours.generate(PROMPT, steps=2, sampler=sampler, seed=3, rng=rng)[0]))


def test_the_same_seed_gives_the_same_picture_and_no_seed_another_one(pair):
    ours = pair[1]
    a, b = (ours.generate(PROMPT, steps=2, seed=1)[0] for _ in range(2))
    c, d = (ours.generate(PROMPT, steps=2)[0] for _ in range(2))
    assert np.array_equal(levels(a), levels(b)) and not np.array_equal(levels(c), levels(d))
    assert np.array_equal(levels(ours.generate(PROMPT, steps=2, seed=c.info["seed"])[0]), levels(c))


def test_guidance_scale_one_never_runs_the_unconditional_half(pair):
    ours, prompts, texts = pair[1], [], []

    class Spy:
        config = ours.unet.config

        def __call__(self, latents, timesteps, context):
            prompts.append(len(context))
            return ours.unet(latents, timesteps, context)

    class SpyOnText:
        config = ours.text_encoder.config

        def __call__(self, *arguments):
            texts.append(len(prompts))
            return ours.text_encoder(*arguments)

    spied = OurPipeline(ours.tokenizer, SpyOnText(), Spy(), ours.vae, SCHEDULE, "spied")
    spied.generate(PROMPT, steps=2, guidance_scale=1, sampler="ddim", seed=0)
    spied.generate(PROMPT, steps=1, guidance_scale=2, sampler="ddim", seed=0)
    assert prompts == [1, 1, 2] and texts == [0, 2, 2]


def test_keys_and_values_of_the_prompts_are_computed_once_a_picture(pair):
    ours, seen = pair[1], []
    cross = ours.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    with kernels.watched(lambda operation, arguments, result: seen.append(id(arguments.get("weight")))):
        ours.generate(PROMPT, NEGATIVE, steps=4, sampler="ddim", seed=0)
    assert [seen.count(id(layer.weight)) for layer in (cross.to_q, cross.to_k, cross.to_v)] == [4, 1, 1]


def test_callback_sees_every_step(pair):
    seen = []
    pair[1].generate(PROMPT, steps=4, sampler="ddim", seed=0, callback=lambda step, steps, latents: seen.append(
        (step, steps, latents.shape, latents.dtype)))
    assert seen == [(i, 4, (1, 8, 8, 4), np.float32) for i in (1, 2, 3, 4)]


@pytest.mark.parametrize("name", ["ddim", "euler", "euler_a"])
def test_latents_that_are_given_equal_diffusers_pictures_arrays_and_latents(pair, name):
    """euler multiplies them by its first σ, and euler_a draws its first noise from the seed."""
    theirs, ours = pair
    theirs.scheduler = SAMPLERS[name].from_config(SCHEDULER)
    latents = np.random.default_rng(1).standard_normal((2, 8, 12, 4), np.float32)
    kept, settings = latents.copy(), dict(num_inference_steps=6, guidance_scale=5.0)
    for output_type, limit in ("pil", 1), ("np", 1e-3), ("latent", 1e-3):
        generators = [torch.Generator().manual_seed(seed) for seed in (7, 3)]
        expected = theirs(PROMPT, negative_prompt=NEGATIVE, latents=references.channels_first(latents), generator=generators,
                          num_images_per_prompt=2, output_type=output_type, height=32, width=48, **settings).images
        found = ours.generate(PROMPT, NEGATIVE, latents=latents, seed=[7, 3], sampler=name, output_type=output_type, **settings)
        if output_type == "pil":
            assert [image.info["seed"] for image in found] == [7, 3] and "parameters" not in found[0].info
            found, expected = ([levels(image) for image in images] for images in (found, expected))
        elif output_type == "latent":
            expected = references.channels_last(expected)
        agree("whole pictures", f"given latents, {name}, {output_type}", found, expected, limit)
    assert np.array_equal(latents, kept)


def test_latents_that_the_seed_would_draw_change_nothing(pair):
    ours, settings = pair[1], dict(steps=3, sampler="ddim", width=48, height=32)
    expected = ours.generate(PROMPT, seed=5, count=2, **settings)
    latents = noise.latent_noise("torch", (5, 6), 8, 12).start()
    for given, whole in zip(ours.generate([PROMPT, PROMPT], latents=latents, **settings), expected):
        assert np.abs(levels(given) - levels(whole)).max() <= 1


def test_arrays_are_what_latents_decode_to(pair):
    ours, settings = pair[1], dict(steps=2, sampler="ddim", seed=[4, 9])
    arrays, latents = (ours.generate(PROMPT, output_type=each, **settings) for each in ("np", "latent"))
    assert arrays.dtype == latents.dtype == np.float32 and arrays.min() >= 0 and arrays.max() <= 1
    decoded = np.concatenate([ours.vae.decode(one[None]) for one in latents])
    assert np.array_equal(arrays, np.clip(decoded / 2 + 0.5, 0, 1))
    pictures = ours.generate(PROMPT, **settings)
    assert [levels(ours.decode(one[None])).tolist() for one in latents] == [levels(each).tolist() for each in pictures]
    assert "Seed: 9" in pictures[1].info["parameters"]


def test_states_that_are_given_equal_diffusers_in_place_of_either_prompt(pair):
    theirs, ours = pair
    theirs.scheduler = SAMPLERS["ddim"].from_config(SCHEDULER)
    states = np.random.default_rng(2).standard_normal((2, 77, ours.unet.config.cross_attention_dim), np.float32)
    for negative in states[::-1], None:
        theirs_too = {} if negative is None else {"negative_prompt_embeds": torch.from_numpy(negative.copy())}
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 8)]
        expected = theirs(prompt_embeds=torch.from_numpy(states), height=32, width=32, num_inference_steps=4,
                          guidance_scale=5.0, generator=generators, **theirs_too).images
        found = ours.generate(prompt_embeds=states, negative_prompt_embeds=negative, steps=4, guidance_scale=5, seed=[3, 8],
                              sampler="ddim", width=32, height=32)
        agree("whole pictures", "given states, levels of 255", [levels(each) for each in found],
              [levels(each) for each in expected], 1)


def test_states_of_a_prompt_that_are_given_make_its_picture(pair):
    """Also of a long one, beside a negative prompt of one chunk, for all pictures."""
    ours, settings, long = pair[1], dict(steps=2, sampler="ddim", seed=2, count=2), "a red apple " * 40
    negative = ours.encode_prompt(NEGATIVE)
    for prompt, given in (PROMPT, dict(negative_prompt_embeds=negative)), (long, dict(negative_prompt=NEGATIVE)):
        expected = ours.generate(prompt, NEGATIVE, **settings)
        found = ours.generate(prompt_embeds=ours.encode_prompt(prompt), **given, **settings)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected)) and found[0].info.keys() == {"seed"}


def test_a_generator_draws_seeds_with_which_each_picture_can_be_made_again(pair):
    ours, settings = pair[1], dict(steps=1, sampler="ddim")
    two, again = (ours.generate([PROMPT, "a cat"], generator=np.random.default_rng(6), **settings) for _ in range(2))
    alone, = ours.generate("a cat", seed=two[1].info["seed"], **settings)
    assert np.array_equal(levels(two[1]), levels(alone)) and np.array_equal(levels(two[1]), levels(again[1]))
    assert two[0].info["seed"] != two[1].info["seed"]


STATES, START = np.zeros((1, 77, 24), np.float32), np.zeros((1, 8, 8, 4), np.float32)


@pytest.mark.parametrize("options, words", [
    (dict(latents=START[..., :3]), "latents is an array (1, 8, 8, 3) of float32: it must be (N, H/4, W/4, 4) of float32"),
    (dict(latents=START.astype(float)), "of float64"), (dict(latents=torch.zeros(1, 8, 8, 4)), "latents is a Tensor"),
    (dict(latents=START * np.nan), "not finite"), (dict(latents=START[:0]), "array (0, 8, 8, 4)"),
    (dict(latents=START, width=64), "latents are for a picture of 32x32 pixels, asked for are 64x32"),
    (dict(latents=START, count=2), "latents: 1 given, there must be one for each picture, 2"),
    (dict(latents=START, init_image=Image.new("RGB", (32, 32)), steps=4), "not with init_image"),
    (dict(latents=START, subseed=1, subseed_strength=0.5), "not with subseed_strength"),
    (dict(prompt_embeds=STATES), "prompt_embeds stand in place of the prompt"),
    (dict(negative_prompt_embeds=STATES, negative_prompt="x"), "in place of the negative prompt"),
    (dict(prompt_embeds=STATES[:, :76], prompt=None), "a multiple of 77"),
    (dict(prompt_embeds=STATES[..., :5], prompt=None), "prompt_embeds is an array (1, 77, 5)"),
    (dict(negative_prompt_embeds=np.repeat(STATES, 3, 0)), "3 given, there must be 1, or one for each prompt, 1"),
    (dict(negative_prompt_embeds=STATES, prompt="a red apple " * 40), "both must have as many"),
    (dict(prompt=None), "prompt is None: it must be a text"), (dict(output_type="pt"), "known are pil, np, latent"),
    (dict(output_type="latents"), "did you mean latent?"),
    (dict(seed=[1, 2], count=3), "seed: 2 given, there must be one for each picture, 3"),
    (dict(seed=[]), "seed is []"), (dict(seed=[1, "x"]), "seed is 'x'"), (dict(seed=1.5), "seed is 1.5"),
    (dict(generator=torch.Generator()), "generator is a Generator of torch: say seed=S"),
    (dict(generator=[torch.Generator()]), "say seed=S"), (dict(generator=np.random.default_rng(), seed=1), "give it or seed")])
def test_what_is_given_in_vain_is_named_in_one_line(pair, options, words):
    with pytest.raises(UserError) as error:
        pair[1].generate(**{"prompt": PROMPT, "steps": 1} | options)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("options, words", [
    (dict(width=50), "multiple of 4"), (dict(height=0), "multiple of 4"), (dict(width=1 << 20), "8192"),
    (dict(steps=0), "steps"),
    (dict(steps=1001), "steps"), (dict(sampler="eular"), "did you mean euler"), (dict(schedule="magic"), "schedule"),
    (dict(count=0), "count"), (dict(init_image=Image.new("RGB", (32, 32)), strength=0), "strength"), (dict(rng="dice"), "dice"),
    (dict(seed="x"), "seed"), (dict(seed=2**64 - 1, count=2), f"with 2 pictures it can be at most {2**64 - 2}"),
    (dict(subseed=2**64, subseed_strength=0.5), "subseed is"),
    (dict(subseed=2**64 - 1, subseed_strength=0.5, count=2), "subseed: with 2 pictures"),
    (dict(guidance_scale=float("nan")), "guidance_scale")])
def test_a_value_that_cannot_be_used_is_named_in_one_line(pair, options, words):
    with pytest.raises(UserError) as error:
        pair[1].generate(PROMPT, **{"steps": 1, "seed": 0} | options)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_prompt_syntax_is_found_before_adapters_are_merged(pair, monkeypatch):
    monkeypatch.setattr(pair[1].adapters, "follow", None)
    with pytest.raises(UserError, match="unknown prompt_syntax 'a111': did you mean a1111[?]"):
        pair[1].generate(PROMPT, steps=1, seed=0, prompt_syntax="a111")


def test_a_picture_too_large_for_the_memory_is_refused_before_anything_is_done(pair, monkeypatch):
    monkeypatch.setattr(machine, "memory_available", lambda: 10**8)
    pair[1].generate(PROMPT, steps=1, seed=0)
    with pytest.raises(UserError, match="2048×1024 pixels: needs about 0.8 GB of memory, 0.1 GB are available"):
        pair[1].generate(PROMPT, steps=1, seed=0, width=2048, height=1024, vae_tiling="off")


def test_a_result_that_is_not_finite_names_the_layer(each_backend, pair):
    theirs = pair[0]
    unet = references.twin(theirs.unet)
    unet.down_blocks[0].resnets[1].conv1.bias[3] = np.inf
    broken = OurPipeline(pair[1].tokenizer, pair[1].text_encoder, unet, pair[1].vae, SCHEDULE, "x")
    with pytest.raises(UserError, match=r"not finite .* unet\.down_blocks\.0\.resnets\.1\.conv1"):
        broken.generate(PROMPT, steps=1, seed=0)


def test_diffusers_names_are_understood(pair):
    ours = pair[1]
    a, = ours.generate(PROMPT, steps=2, sampler="ddim", seed=1)
    b, = ours.generate(PROMPT, negative_prompt=None, num_inference_steps=2, num_images_per_prompt=1, sampler="ddim", seed=1)
    assert np.array_equal(np.asarray(a), np.asarray(b))
    with pytest.raises(TypeError, match="'num_inference_step', did you mean num_inference_steps"):
        ours.generate(PROMPT, num_inference_step=2)
    with pytest.raises(TypeError, match="num_inference_steps and steps are the same setting"):
        ours.generate(PROMPT, steps=3, num_inference_steps=2)


@pytest.mark.parametrize("wrong", [dict(width="64"), dict(height=64.0), dict(count="2"), dict(count=1.5), dict(count=True),
                                   dict(clip_skip=99), dict(hires=2, hires_steps=0)])
def test_what_is_no_such_number_is_named(wrong, pair):
    with pytest.raises(UserError, match=list(wrong)[-1]):
        pair[1].generate(PROMPT, steps=1, seed=0, **wrong)


def test_two_threads_may_ask_one_pipeline(pair):
    """Their prompts, sizes and tiles don't mix, and nothing of the last picture stays behind."""
    ours, settings = pair[1], [dict(seed=1, vae_tiling="on"), dict(seed=2, width=48, height=32)]
    alone = [np.asarray(ours.generate(PROMPT, steps=3, sampler="ddim", **each)[0]) for each in settings]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda each: np.asarray(ours.generate(PROMPT, steps=3, sampler="ddim", **each)[0]), settings))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together))
