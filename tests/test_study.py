"""A look inside: it changes no picture, and what it shows equals what hooks in diffusers see."""
import itertools
import json

import numpy as np
import pytest
import torch

from npdiffusion import kernels
from npdiffusion.errors import UserError
from npdiffusion.models import flops, parameters
from npdiffusion.models.conditioning import Conditioning
from npdiffusion.models.configs import UNetConfig
from npdiffusion.models.unet import UNet2DConditionModel
from npdiffusion.study import attention as looking
from npdiffusion.study import attention_maps, filmstrip, forward_process, trace
from npdiffusion.study.making import make, resolved_for
from npdiffusion.study.names import Names
from npdiffusion.study.tracing import Tracer
from npdiffusion.study.words import Words, find_word
from tests import pages, pairs
from tests.differences import agree
from tests.hooks import hooked, of_level
from tests.references import channels_last, random

SIZE = dict(width=40, height=56)                          # of levels 14 × 10, 7 × 5 and 4 × 3
ASKED = dict(negative_prompt=pairs.NEGATIVE, steps=3, seed=7, sampler="ddim", **SIZE)
BLOCK = "unet.down_blocks.1.attentions.0.transformer_blocks.0"


@pytest.fixture(scope="module")
def theirs_seen(pair):
    """What hooks in diffusers see while it makes the picture: {layer: [(2, heads, T, 77) of each step]}"""
    theirs = pairs.make_theirs(sampler="ddim")
    seen = hooked(theirs.unet)
    pairs.their_picture(theirs, num_inference_steps=3, **SIZE)
    return seen


@pytest.fixture(scope="module")
def maps(pair):
    return attention_maps(pair[1], pairs.PROMPT, **ASKED)


# ---- nothing changes

@pytest.mark.parametrize("look", [trace, attention_maps, filmstrip], ids=lambda look: look.__name__)
def test_the_picture_is_that_made_without_looking(look, pair, each_backend):
    expected, = pair[1].generate(pairs.PROMPT, progress=False, **ASKED)
    image, = look(pair[1], pairs.PROMPT, **ASKED).images
    assert np.array_equal(np.asarray(image), np.asarray(expected)) and image.info == expected.info


# ---- attention maps

def test_attention_maps_equal_those_of_hooks_in_diffusers(maps, theirs_seen):
    heights, widths, layers = (14, 7, 4), (10, 5, 3), [5, 5, 1]
    assert maps.array.shape == (3, 3, 4, len(maps.words), 14, 10) and maps.layers == layers
    for level, (h, w) in enumerate(zip(heights, widths)):
        names = [name for name, seen in theirs_seen.items() if seen[0].shape[2] == h * w]
        assert len(names) == layers[level]
        expected = of_level(theirs_seen, h, w)                                # (steps, heads, 77, h, w)
        count = len(maps.words) - 3                                           # beside start, end and padding
        agree("study", f"attention maps, level {level}", maps.levels[level][:, :, :count + 2], expected[:, :, :count + 2], 1e-5)
        agree("study", f"attention to padding, level {level}", maps.levels[level][:, :, -1],
              expected[:, :, count + 2:].sum(axis=2), 1e-5)


def test_a_map_of_a_word_is_the_mean_over_layers_heads_and_steps(maps, theirs_seen):
    """DAAM's, with the mean over areas in place of its interpolation."""
    position = 1 + [word.text for word in maps.words[1:]].index("apple")
    sizes = {h * w: (h, w) for h, w in ((14, 10), (7, 5), (4, 3))}
    found = [looking.resized(np.mean(seen, axis=0)[1].mean(axis=0)[:, position].reshape(sizes[seen[0].shape[2]]), 14, 10)
             for seen in theirs_seen.values()]
    agree("study", "DAAM's map of a word", maps.of("apple"), np.mean(found, axis=0), 1e-5)
    assert np.allclose(maps.averages()[position], maps.of("apple"), atol=1e-7)


def test_every_place_gives_its_words_one_in_all(maps):
    agree("study", "attention of a place to all words", maps.array.sum(axis=3), np.ones((3, 3, 4, 14, 10)), 1e-5)
    assert maps.rows < 1e-5


def test_maps_times_values_are_what_the_kernel_computed(pair, each_backend):
    found = attention_maps(pair[1], pairs.PROMPT, **ASKED)
    agree("study", f"P V and the {each_backend} kernel's output", found.values, 0, 1e-6)


@pytest.mark.parametrize("size", [1, 10, 40])
def test_scores_decide_how_exact_attention_can_be_in_float32(size, each_backend):
    """P V in float64, on the scale of AttentionMaps.values: larger scores are rounded more coarsely"""
    q, k, v = random(1, 33, 16), size * random(1, 77, 16, seed=1), random(1, 77, 16, seed=2)
    scores = (q.astype(float) @ k.astype(float).swapaxes(1, 2)) / 4
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    exact = p / p.sum(axis=-1, keepdims=True) @ v
    scale = (1 + np.abs(scores).max()) * np.abs(v).max()
    agree("study", "attention beside float64", kernels.attention(q, k, v, 1) / scale, exact / scale, 1e-6)
    maps, used, score = looking.probabilities(q, k)
    agree("study", "maps beside float64", used @ v / scale, exact / scale, 1e-6)
    assert maps is used and score == pytest.approx(np.abs(scores).max(), rel=1e-5)


def test_maps_of_bfloat16_products_are_the_kernels(pair, each_backend):
    q, k, v = random(1, 33, 16), random(1, 77, 16, seed=1), random(1, 77, 16, seed=2)
    y = kernels.attention(q, k, v, 1, dtype="bfloat16")
    _, used, _ = looking.probabilities(q, k, "bfloat16")
    agree("study", "P V of bfloat16 products", used @ looking.value(v, "bfloat16"), y, 2e-3)


def test_maps_of_a_hires_pass_and_without_guidance_are_made_too(pair):
    found = attention_maps(pair[1], "a red apple", steps=2, seed=1, sampler="euler", width=32, height=32, hires=1.5,
                           guidance_scale=1)
    assert found.array.shape[0] == len(found.spans) and found.array.shape[-2:] == (8, 8)
    assert np.abs(found.array.sum(axis=3) - 1).max() < 1e-5 and found.values < 1e-6


def test_a_prompt_that_changes_has_columns_for_each_of_its_texts(pair):
    found = attention_maps(pair[1], "a [cat:dog:0.5]", steps=4, seed=1, sampler="euler", width=32, height=32)
    cat, dog = found.columns("cat"), found.columns("dog")
    assert found.levels[0][:3, :, cat].min() > 0 and found.levels[0][3:, :, cat].max() == 0      # as in the web interface
    assert found.levels[0][:3, :, dog].max() == 0 and found.levels[0][3:, :, dog].min() > 0
    assert np.abs(found.array.sum(axis=3) - 1).max() < 1e-5


def test_what_stands_beside_the_prompt_is_no_word_of_it(pair, monkeypatch):
    """As pictures do with an IP-Adapter: the same queries look at them by themselves"""
    def beside(conditioning, attention):
        k, v = conditioning.keys_and_values(attention)
        return [(k[:, :4], v[:, :4], 0.5)]
    monkeypatch.setattr(Conditioning, "beside", beside)
    resolved = resolved_for(pair[1], "a red apple", steps=2, seed=1, sampler="ddim", **SIZE)
    recorder = looking.Recorder(pair[1], resolved)
    make(pair[1], resolved, [recorder.watch], recorder.step)
    assert [recorder.counts[level].tolist() for level in recorder.numbers] == [[5, 5], [5, 5], [1, 1]]     # layers, each step


def test_many_steps_are_averaged_within_the_stated_memory(pair, monkeypatch):
    each = attention_maps(pair[1], "a red apple", steps=6, seed=1, sampler="ddim", **SIZE)
    monkeypatch.setattr(looking, "MOST_STEPS", 4)
    found = attention_maps(pair[1], "a red apple", steps=6, seed=1, sampler="ddim", **SIZE)
    assert found.spans == [(1, 2), (3, 3), (4, 5), (6, 6)] and "averaged into 4" in found.notes[0]
    for maps, expected in zip(found.levels, each.levels):
        agree("study", "maps averaged over steps", maps[0], expected[:2].mean(axis=0), 1e-6)


def test_a_step_whose_maps_exceed_the_memory_is_refused():
    with pytest.raises(UserError, match="shorten the prompt"):
        looking.bins(10, looking.MOST_BYTES + 1)
    assert looking.bins(1000, 1) == looking.MOST_STEPS and looking.bins(1000, looking.MOST_BYTES // 3) == 3


def test_large_levels_are_averaged_over_areas(pair, monkeypatch):
    full = attention_maps(pair[1], "a red apple", steps=1, seed=1, sampler="ddim", width=64, height=64)
    monkeypatch.setattr(looking, "SIDE", 4)
    found = attention_maps(pair[1], "a red apple", steps=1, seed=1, sampler="ddim", width=64, height=64)
    blocks = full.levels[0].reshape(*full.levels[0].shape[:3], 4, 4, 4, 4).mean(axis=(4, 6))
    agree("study", "maps averaged over places", found.levels[0], blocks, 1e-6)


@pytest.mark.parametrize(("n", "m"), [(9, 4), (4, 9), (5, 5), (1, 3), (64, 32)])
def test_a_resized_map_keeps_its_mean(n, m):
    x = random(3, n, n)
    agree("study", "mean of a resized map", looking.resized(x, m, m).mean(axis=(1, 2)), x.mean(axis=(1, 2)), 1e-6)


def test_heads_of_levels_that_differ_are_averaged_to_as_many(monkeypatch):
    config = dict(vars(UNetConfig(block_out_channels=(32, 64), cross_attention=(True, True), heads=(2, 4), layers_per_block=1,
                                  cross_attention_dim=24, norm_num_groups=8)))
    _, ours = pairs.make_pair()
    ours.unet = ours.models["unet"] = UNet2DConditionModel(UNetConfig(**config))
    for number, (_, owner, attribute) in enumerate(parameters.walk(ours.unet)):
        setattr(owner, attribute, random(*getattr(owner, attribute).shape, seed=number) / 8)
    found = attention_maps(ours, "a red apple", steps=1, sampler="ddim", seed=1, width=32, height=32)
    assert found.array.shape[:3] == (1, 2, 2) and np.abs(found.array.sum(axis=3) - 1).max() < 1e-5


def test_words_are_found_whole_in_part_or_with_the_nearest_one(maps, pair):
    assert [maps.words[column].text for column in maps.columns("APPLE")] == ["apple"]
    assert maps.columns("<start>") == [0] and len(maps.columns("a")) == 2
    with pytest.raises(UserError, match="no word 'appel': did you mean apple"):
        maps.of("appel")
    split = Words(pair[1], resolved_for(pair[1], "a capybara", steps=1, sampler="ddim")).list
    assert len(find_word(split, "capybara")) > 1 and find_word(split, split[2].text) == [2]


# ---- traces

@pytest.fixture(scope="module")
def traced(pair):
    return trace(pair[1], pairs.PROMPT, keep=[f"{BLOCK}.*", "unet.conv_in", "unet.conv_out"], **ASKED)


def test_layers_have_the_names_of_the_checkpoint(pair, traced):
    known = {f"{part}.{name}" for part in ("unet", "vae", "text_encoder")
             for name, _ in getattr(pair[0], part).named_modules()}
    known |= {name.replace("text_encoder.text_model.", "text_encoder.") for name in known}
    weighted = [name for name in traced.layers if name.rpartition(".")[2] not in ("attention", "silu", "quick_gelu",
                                                                                  "timestep_embedding")]
    assert len(weighted) > 150 and {*weighted} <= known


def test_every_layer_that_a_picture_needs_is_traced(pair, traced):
    layers = {f"{part}.{path}" for part, model in pair[1].models.items() for path, module in parameters.modules(model)
              if hasattr(module, "weight")}
    unused = layers - {*traced.layers}
    assert all(name.startswith(("vae.encoder", "vae.quant_conv")) for name in unused), sorted(unused)[:5]


@torch.no_grad()
def test_shapes_and_tensors_are_those_of_hooks_in_diffusers(pair, traced):
    seen = {}
    theirs = pairs.make_theirs(sampler="ddim")
    for name in "conv_in", "conv_out":
        getattr(theirs.unet, name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.setdefault(name, []).append(map(channels_last, (*inputs, output))))
    pairs.their_picture(theirs, num_inference_steps=3, **SIZE)
    for name, calls in seen.items():
        layer, tensors = traced.layers[f"unet.{name}"], traced.tensors[f"unet.{name}"]
        inputs, outputs = zip(*calls)
        assert layer.calls == 3 and layer.shape_in[1:] == inputs[0].shape[1:]
        agree("study", f"{name}, step by step", np.stack(tensors), np.stack(outputs)[:, -len(tensors[0]):], 1e-4)


def test_statistics_are_those_of_the_tensors(traced):
    assert len(traced.tensors) > 10
    for name, tensors in traced.tensors.items():
        layer, numbers = traced.layers[name], np.concatenate([tensor.ravel() for tensor in tensors])
        assert layer.calls == len(tensors) and layer.shape_out == tensors[-1].shape
        agree("study", "mean, deviation and largest of a layer", [layer.mean, layer.deviation, layer.largest],
              [numbers.mean(dtype=float), numbers.std(dtype=float), np.abs(numbers).max()], 2e-4)


def test_the_arithmetic_of_a_call_is_what_the_configuration_says(pair):
    ours, tracer = pair[1].unet, Tracer(pair[1])
    with kernels.watched(tracer.watch):
        ours(random(1, 11, 9, 4), 5, random(1, 77, 24))
    counted = sum(layer.flop * layer.calls for layer in tracer.found.layers.values())
    up = sum(layer.flop for name, layer in tracer.found.layers.items() if "upsamplers" in name)
    assert up > 0 and counted == sum(flops.unet(ours.config, 11, 9).values())


def test_a_trace_can_end_at_a_layer(pair):
    found = trace(pair[1], pairs.PROMPT, until=f"{BLOCK}.attn2.attention", **ASKED)
    assert found.images == [] and [*found.layers][-1] == f"{BLOCK}.attn2.attention"
    assert [tensor.shape for tensor in found.tensors[f"{BLOCK}.attn2.attention"]] == [(2, 35, 64)]


def test_an_unknown_layer_is_answered_by_the_nearest_before_anything_is_computed(pair):
    with pytest.raises(UserError, match=r"no layer is called unet.midblock\S+: did you mean unet.mid_block.resnets.0"):
        trace(pair[1], pairs.PROMPT, keep=["unet.midblock.resnets.0.conv1"], **ASKED)
    Names(pair[1]).check(["unet.*.attn2.attention", "unet.conv_in"])


def test_tensors_beyond_the_memory_are_refused(pair, monkeypatch):
    monkeypatch.setattr("npdiffusion.study.tracing.MOST_BYTES", 1 << 12)
    with pytest.raises(UserError, match="name fewer"):
        trace(pair[1], pairs.PROMPT, keep=["unet.*"], **ASKED)


def test_more_calls_than_are_kept_are_noted_and_counted(pair, traced, monkeypatch):
    monkeypatch.setattr("npdiffusion.study.tracing.MOST_CALLS", 50)
    found = trace(pair[1], pairs.PROMPT, **ASKED)
    assert len(found.calls) == 50 and "first 50" in found.notes[0]
    assert {name: layer.calls for name, layer in found.layers.items()} == {n: each.calls for n, each in traced.layers.items()}


def test_a_trace_is_what_chrome_reads(traced):
    events = json.loads(json.dumps(traced.chrome()))["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == len(traced.calls) and {event["args"]["name"] for event in events if event["ph"] == "M"} == {
        "text_encoder", "unet", "vae"}
    assert all(a["ts"] + a["dur"] <= b["ts"] + 0.2 for a, b in itertools.pairwise(spans))         # rounded to 0.1
    assert {event["args"]["step"] for event in spans} == {0, 1, 2, 3}
    assert json.dumps(traced.rows()) and str(traced).count("\n") == len(traced.layers)


def test_names_follow_weights_that_a_lora_replaces(pair):
    names, layer = Names(pair[1]), pair[1].unet.conv_out
    before = layer.weight
    try:
        layer.weight = np.zeros((4, 32, 3, 3), np.float32)
        assert names.of("conv2d", {"weight": layer.weight}) == "unet.conv_out"
    finally:
        layer.weight = before


# ---- films

def test_a_film_ends_with_the_picture(pair):
    film = filmstrip(pair[1], pairs.PROMPT, frames=2, **ASKED)
    assert film.steps == [2, 3] and np.array_equal(np.asarray(film.state_pictures[-1]), np.asarray(film.images[0]))
    assert film.sheet().width < film.sheet().height and len(film.x0_pictures) == len(film.x0) == 2
    with pytest.raises(UserError, match="from 1 to"):
        filmstrip(pair[1], pairs.PROMPT, frames=0, **ASKED)


def test_the_forward_process_has_the_mean_and_the_variance_of_its_equation():
    grey = np.full((64, 64, 3), 128, np.uint8)
    found = forward_process(grey, [0, 250, 999])
    abar = pairs.SCHEDULE.alphas_cumprod
    for t, image in found[:2]:                              # later ones are clipped at black and white
        deviation = np.asarray(image, float).std() / 127.5
        assert deviation == pytest.approx(np.sqrt(1 - abar[t]), rel=0.12 if t else 0.3)
    assert [t for t, _ in forward_process(grey, 3)] == [0, 500, 999]
    with pytest.raises(UserError, match="whole numbers from 0 to 999"):
        forward_process(grey, [1000])


# ---- the page

def test_a_picture_made_by_hand_is_the_pipelines(tmp_path, monkeypatch):
    """The first two blocks of docs/inside-a-picture.md, with the embedded model."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in [each for each in pages.blocks(pages.ROOT / "docs" / "inside-a-picture.md") if each.language == "python"][:2]:
        exec(block.text.replace("steps=20", "steps=4"), names)
    agree("study", "a picture made by hand, in levels", np.asarray(names["by_hand"], int), np.asarray(names["image"], int), 1)
