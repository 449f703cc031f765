"""IP-Adapter and T2I-Adapter beside diffusers': image encoder, projections, features, pictures; every kind of file."""
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionAdapterPipeline
from diffusers import T2IAdapter as TorchT2IAdapter
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor
from transformers import CLIPVisionConfig as TorchVisionConfig
from transformers import CLIPVisionModelWithProjection as TorchVisionModel

import npdiffusion
from npdiffusion import kernels, loading
from npdiffusion.checkpoints import ip_adapters, t2i_adapters
from npdiffusion.checkpoints.families import FAMILIES
from npdiffusion.errors import UserError
from npdiffusion.memory import budget
from npdiffusion.models import parameters
from npdiffusion.models.clip_vision import CLIPVisionConfig, CLIPVisionModelWithProjection
from npdiffusion.models.configs import UNetConfig
from npdiffusion.models.ip_adapter import cross_attentions
from npdiffusion.models.t2i_adapter import T2IAdapter
from npdiffusion.models.unet import UNet2DConditionModel
from npdiffusion.pictures.clip_pixels import clip_pixels
from npdiffusion.settings import Request
from npdiffusion.study import trace
from npdiffusion.study.names import picture_adapters
from tests import pairs, references, relatives, sizes
from tests.differences import agree
from tests.pairs import NEGATIVE, PROMPT, levels
from tests.references import channels_first, channels_last, random

VISION = dict(hidden_size=64, intermediate_size=80, num_hidden_layers=3, num_attention_heads=2, image_size=42, patch_size=14,
              projection_dim=20, hidden_act="gelu")
T2I = dict(in_channels=3, channels=[32, 64, 64], num_res_blocks=2, downscale_factor=4)

pytestmark = pytest.mark.usefixtures("on_numpy")


def picture(width=50, height=44):
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(3)
    made = references.make_demanding(TorchVisionModel(TorchVisionConfig(**VISION)), 3)
    with torch.no_grad():
        made.vision_model.embeddings.class_embedding.normal_()
    return made


def channels_of(unet):
    """Of the cross-attentions, by their number in a file"""
    names = list(unet.attn_processors)
    return {number: unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
            for number, name in enumerate(names) if name.endswith("attn2.processor")}


def projection(kind, width):
    """{name: tensor} of image_proj"""
    random = torch.Generator().manual_seed(8)

    def normal(*shape):
        return torch.randn(shape, generator=random) / (shape[-1] ** 0.5 if len(shape) > 1 else 3)
    if kind == "plain":
        return {"proj.weight": normal(4 * width, 20), "proj.bias": normal(4 * width),
                "norm.weight": 1 + normal(width), "norm.bias": normal(width)}
    if kind == "full face":
        return {"proj.0.weight": normal(64, 64), "proj.0.bias": normal(64), "proj.2.weight": normal(width, 64),
                "proj.2.bias": normal(width), "proj.3.weight": 1 + normal(width), "proj.3.bias": normal(width)}
    found = {"latents": normal(1, 5, 128), "proj_in.weight": normal(128, 64), "proj_in.bias": normal(128),
             "proj_out.weight": normal(width, 128), "proj_out.bias": normal(width), "norm_out.weight": 1 + normal(width),
             "norm_out.bias": normal(width)}
    for i in range(4):                                     # as many as diffusers takes for granted
        found |= {f"layers.{i}.0.{norm}.{what}": (what == "weight") + normal(128) for norm in ("norm1", "norm2")
                  for what in ("weight", "bias")}
        found |= {f"layers.{i}.0.to_q.weight": 3 * normal(128, 128), f"layers.{i}.0.to_kv.weight": 3 * normal(256, 128),
                  f"layers.{i}.0.to_out.weight": normal(128, 128), f"layers.{i}.1.0.weight": 1 + normal(128),
                  f"layers.{i}.1.0.bias": normal(128), f"layers.{i}.1.1.weight": normal(512, 128),
                  f"layers.{i}.1.3.weight": normal(128, 512)}
    return found


def ip_adapter(unet, kind, width):
    """{"image_proj": …, "ip_adapter": …} with random numbers, as published files hold it"""
    random = torch.Generator().manual_seed(9)
    keys = {f"{number}.{which}.weight": torch.randn(channels, width, generator=random) * 2 / width ** 0.5
            for number, channels in channels_of(unet).items() for which in ("to_k_ip", "to_v_ip")}
    return {"image_proj": projection(kind, width), "ip_adapter": keys}


def write(path, state):
    save_file({f"{part}.{name}": tensor.contiguous() for part, found in state.items() for name, tensor in found.items()}, path)
    return path


# ---- the image encoder

def test_the_image_encoder_is_transformers(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "encoder")
    pixels = random(2, 42, 42, 3)
    with torch.no_grad():
        theirs = encoder(channels_first(pixels), output_hidden_states=True)
    config = CLIPVisionConfig.from_dict(encoder.config.to_dict())
    ours = CLIPVisionModelWithProjection(config)
    parameters.load(ours, {name: references.Tensor(tensor) for name, tensor in encoder.state_dict().items()}, "encoder")
    agree("image encoder", "embedding", ours(pixels), theirs.image_embeds, 1e-5, relative=True)
    agree("image encoder", "penultimate states", ours.hidden_states(pixels)[-2], theirs.hidden_states[-2], 1e-5, relative=True)


@pytest.mark.parametrize("size", [(50, 44), (33, 97), (42, 42)])
def test_pixels_for_it_are_transformers(size):
    processor = CLIPImageProcessor(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42})
    expected = processor(picture(*size), return_tensors="pt").pixel_values
    agree("image encoder", "pixels", clip_pixels(picture(*size), 42), channels_last(expected), 1e-5, relative=True)


@pytest.mark.parametrize("name, settings, count, tensors", [
    ("ViT-H", {}, 632_076_800, 520),
    ("bigG", dict(hidden_size=1664, intermediate_size=8192, num_hidden_layers=48, projection_dim=1280), 1_844_907_264, 776)])
def test_names_and_shapes_of_image_encoders_at_full_size_are_transformers(name, settings, count, tensors):
    config = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, image_size=224,
                  patch_size=14, projection_dim=1024, hidden_act="gelu") | settings
    with torch.device("meta"):
        theirs = TorchVisionModel(TorchVisionConfig(**config))
    ours = parameters.shapes(CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(config)))
    assert ours == {key: tuple(tensor.shape) for key, tensor in theirs.state_dict().items() if "position_ids" not in key}
    assert len(ours) == tensors and sum(int(np.prod(shape)) for shape in ours.values()) == count
    assert ip_adapters.settings_of(ours) == {key: config[key] for key in ip_adapters.settings_of(ours)}


# ---- IP-Adapter

@pytest.mark.parametrize("name", ["SD v1", "SDXL"])
def test_cross_attentions_are_numbered_as_diffusers_counts(name):
    full = sizes.FULL[name][0]
    with torch.device("meta"):
        theirs = references.UNet2DConditionModel(**full)
    ours = UNet2DConditionModel(UNetConfig.from_dict(full))
    expected = channels_of(theirs)
    assert [*expected] == [*range(1, 2 * len(expected), 2)]
    assert [attention.to_k.weight.shape[0] for attention in cross_attentions(ours)] == [*expected.values()]


@pytest.fixture(scope="module")
def drawn(encoder, tmp_path_factory):
    """From v1's or XL's name to (diffusers' pipeline, ours, a folder)"""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("ip")
            if name == relatives.XL:
                theirs = relatives.theirs(name)
                theirs.save_pretrained(folder / "model")
                ours = npdiffusion.load(folder / "model")
            else:
                theirs, ours = pairs.make_pair()
            encoder.save_pretrained(folder / "image_encoder")
            made[name] = theirs, ours, folder
        return made[name]
    return get


def ours_asked(ours, **settings):
    return levels(ours.generate(PROMPT, NEGATIVE, steps=3, guidance_scale=5.0, seed=7, width=48, height=32, **settings)[0])


@pytest.mark.parametrize("name, kind", [("v1", "plain"), ("v1", "plus"), ("v1", "full face"), (relatives.XL, "plain"),
                                        (relatives.XL, "plus")])
def test_a_picture_with_an_ip_adapter_equals_diffusers_within_one_level(drawn, encoder, name, kind):
    theirs, ours, folder = drawn(name)
    state = ip_adapter(theirs.unet, kind, theirs.unet.config.cross_attention_dim)
    write(folder / "ip.safetensors", state)
    plain = ours_asked(ours)
    theirs.register_modules(image_encoder=encoder, feature_extractor=CLIPImageProcessor(
        size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42}))
    theirs.load_ip_adapter({part: dict(found) for part, found in state.items()}, subfolder="", weight_name="",
                           image_encoder_folder=None)
    theirs.set_ip_adapter_scale(0.7)
    expected = pairs.their_picture(theirs, num_inference_steps=3, guidance_scale=5.0, width=48, height=32,
                                   ip_adapter_image=picture())
    theirs.unload_ip_adapter()
    ours.load_ip_adapter(folder / "ip.safetensors")
    found = ours_asked(ours, ip_image=picture(), ip_scale=0.7)
    ours.load_ip_adapter(None)
    agree("IP-Adapter", f"{name}, {kind}, levels of 255", found, expected, 1)
    assert np.abs(found - plain).max() > 3 and np.array_equal(ours_asked(ours), plain)


@pytest.mark.parametrize("name", ["v1", relatives.XL])
def test_several_ip_adapters_with_pictures_and_scales_of_their_own_are_diffusers(drawn, encoder, name):
    theirs, ours, folder = drawn(name)
    width = theirs.unet.config.cross_attention_dim
    states = [ip_adapter(theirs.unet, kind, width) for kind in ("plain", "plus")]
    files = [write(folder / f"{number}.safetensors", state) for number, state in enumerate(states)]
    pictures, scales = [picture(), picture(60, 90).rotate(90)], [0.7, 0.4]
    theirs.register_modules(image_encoder=encoder, feature_extractor=CLIPImageProcessor(
        size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42}))
    theirs.load_ip_adapter([{part: dict(found) for part, found in state.items()} for state in states], subfolder=["", ""],
                           weight_name=["", ""], image_encoder_folder=None)
    theirs.set_ip_adapter_scale(scales)
    expected = pairs.their_picture(theirs, num_inference_steps=3, guidance_scale=5.0, width=48, height=32,
                                   ip_adapter_image=pictures)
    theirs.unload_ip_adapter()
    ours.load_ip_adapter(files, folder / "image_encoder")
    try:
        found = ours_asked(ours, ip_adapter_image=pictures, ip_adapter_scale=scales)
        agree("IP-Adapter", f"{name}, two at once, levels of 255", found, expected, 1)
        assert np.abs(found - ours_asked(ours, ip_image=pictures, ip_scale=0.7)).max() > 3
        assert {"ip_adapter.0", "ip_adapter.1"} <= {*picture_adapters(ours)}
        with pytest.raises(UserError, match="ip_image: there are 1 for 2 IP-Adapters; name one for each"):
            ours_asked(ours, ip_image=picture())
        with pytest.raises(UserError, match="ip_scale: there are 3 for 2 IP-Adapters; name one for all, or one for each"):
            ours_asked(ours, ip_image=pictures, ip_scale=[1, 1, 1])
    finally:
        ours.load_ip_adapter(None)


@pytest.mark.parametrize("change, told", [
    (lambda state: state["ip_adapter"].pop("1.to_k_ip.weight"), "not an IP-Adapter|for a UNet of"),
    (lambda state: state["ip_adapter"].update({"0.to_q_lora.down.weight": torch.ones(2, 2)}), "FaceID"),
    (lambda state: state["image_proj"].clear(), "not an IP-Adapter"),
    (lambda state: state.update(ip_adapter={name: torch.ones(len(each), 2048) for name, each in state["ip_adapter"].items()}),
     "is for Stable Diffusion XL .*, but the model is of another family, Stable Diffusion v1"),
    (lambda state: state["image_proj"].update({"proj.weight": torch.ones(96, 33)}),
     "gives 20 numbers, the IP-Adapter reads 33")])
def test_an_ip_adapter_that_does_not_fit_is_one_line(drawn, change, told, tmp_path):
    theirs, ours, folder = drawn("v1")
    state = ip_adapter(theirs.unet, "plain", 24)
    change(state)
    with pytest.raises(UserError, match=told) as error:
        ours.load_ip_adapter(write(tmp_path / "ip.safetensors", state), folder / "image_encoder")
    assert "\n" not in str(error.value) and ours.ip_adapter is None


def test_an_ip_adapter_without_its_encoder_says_where_it_was_looked_for(drawn, tmp_path):
    theirs, ours, _ = drawn("v1")
    with pytest.raises(UserError, match="no image_encoder/ there: name CLIP's image encoder"):
        ours.load_ip_adapter(write(tmp_path / "ip.safetensors", ip_adapter(theirs.unet, "plain", 24)))


def test_adapters_of_pictures_are_counted_in_and_stay_on_disk_where_memory_is_short(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(parameters, "SMALLEST_ON_DISK", 1000)
    monkeypatch.setattr(kernels, "_chosen", "numba")
    theirs, _, folder = drawn(relatives.XL)
    write(folder / "ip.safetensors", ip_adapter(theirs.unet, "plus", 192))
    t2i(channels=[64, 128, 128]).save_pretrained(tmp_path / "t2i")
    files = dict(ip_adapter=folder / "ip.safetensors", t2i_adapter=tmp_path / "t2i")
    asked = dict(steps=1, seed=7, width=48, height=32, ip_image=picture())
    opened, alone = loading.open_checkpoint(folder / "model", **files), loading.open_checkpoint(folder / "model")
    assert opened.fit().kept - alone.fit().kept == sum(parameters.nbytes(opened.adapters[name].model, "float32")
                                                       for name in ("ip_adapter 0", "image_encoder", "t2i_adapter"))
    files.pop("t2i_adapter")
    whole = npdiffusion.load(folder / "model", **files)
    short = npdiffusion.load(folder / "model", **files, dtype="float32", max_memory=budget.RUNTIME + 9e6, requests=[
        Request(PROMPT, **asked)])
    assert short.budget.on_disk["ip_adapter 0"] and short.budget.on_disk["image_encoder"]
    assert np.array_equal(*(levels(each.generate(PROMPT, **asked)[0]) for each in (whole, short)))


def test_what_is_loaded_later_is_counted_and_refused_where_there_is_no_room(drawn, monkeypatch):
    monkeypatch.setattr(kernels, "_chosen", "numba")
    theirs, _, folder = drawn(relatives.XL)
    write(folder / "ip.safetensors", ip_adapter(theirs.unet, "plain", 192))
    roomy = npdiffusion.load(folder / "model", dtype="float32", max_memory="1GB")
    kept = roomy.budget.kept
    for _ in range(2):                                                     # the second one in place of the first
        roomy.load_ip_adapter(folder / "ip.safetensors")
        parts = ip_adapters.open_ip_adapters(folder / "ip.safetensors", None, roomy.unet, roomy.family)
        assert roomy.budget.kept - kept == sum(parameters.nbytes(part.model, "float32") for part in parts.values())
    roomy.load_ip_adapter(None)
    assert roomy.budget.kept == kept
    full = npdiffusion.load(folder / "model", dtype="float32", max_memory=roomy.budget.foretold + 1)
    with pytest.raises(UserError, match="IP-Adapters: need about .* but max_memory is .* named when the model is loaded"):
        full.load_ip_adapter(folder / "ip.safetensors")
    assert full.ip_adapter is None


def test_a_picture_and_the_adapter_that_reads_it_go_together(drawn):
    _, ours, _ = drawn("v1")
    with pytest.raises(UserError, match="an IP-Adapter and the picture that it reads go together"):
        ours_asked(ours, ip_image=picture())
    with pytest.raises(UserError, match="a T2I-Adapter and the picture that it is led by go together"):
        ours_asked(ours, t2i_image=picture())


# ---- T2I-Adapter

def t2i(kind="full_adapter", **settings):
    torch.manual_seed(6)
    made = TorchT2IAdapter(adapter_type=kind, **T2I | settings).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(1.5)
    return made


UNETS = {"v1": references.TINY_UNET, "SDXL": sizes.TINY["SDXL"]}
KINDS = [("v1", "full_adapter", {}), ("v1", "light_adapter", {"channels": [32, 64]}),
         ("v1", "full_adapter", {"in_channels": 1}),
         ("SDXL", "full_adapter_xl", dict(channels=[32, 64, 96, 96], downscale_factor=8))]


@pytest.mark.parametrize("name, kind, settings", KINDS, ids=["full", "light", "gray", "XL"])
def test_features_and_what_the_unet_makes_of_them_are_those_of_diffusers(name, kind, settings, tmp_path):
    adapter, family = t2i(kind, **settings), FAMILIES[2 if name == "SDXL" else 0]
    adapter.save_pretrained(tmp_path / "t2i")
    theirs = references.torch_unet(**UNETS[name])
    ours = references.twin(theirs)
    part = t2i_adapters.open_t2i_adapter(tmp_path / "t2i", ours.config, family)
    part.fill()
    pixels = np.abs(random(1, 64, 96, adapter.config.in_channels))
    x, states = random(2, 16, 24, 4), random(2, 7, ours.config.cross_attention_dim)
    added = {"text_embeds": torch.from_numpy(random(2, 32)), "time_ids": torch.arange(12).reshape(2, 6).float()}
    conditioning = npdiffusion.models.conditioning.Conditioning(
        states, pooled=random(2, 32), sizes=np.arange(12, dtype=np.float32).reshape(2, 6)) if name == "SDXL" else states
    with torch.no_grad():
        expected = adapter(channels_first(pixels))
        found = part.model(pixels)
        for ours_, theirs_ in zip(found, expected, strict=True):
            agree("T2I-Adapter", f"{name}, {kind}: features", ours_, channels_last(theirs_), 1e-5, relative=True)
        plain = theirs(channels_first(x), 500, torch.from_numpy(states), added_cond_kwargs=added).sample
        led = theirs(channels_first(x), 500, torch.from_numpy(states), added_cond_kwargs=added,
                     down_intrablock_additional_residuals=[each.repeat(2, 1, 1, 1) for each in expected]).sample
    found = ours(x, 500, conditioning, features=found)
    agree("T2I-Adapter", f"{name}, {kind}: UNet", found, channels_last(led), 1e-5, relative=True)
    assert (led - plain).abs().max() > 0.05


@pytest.mark.parametrize("kind", ["full_adapter", "light_adapter"])
def test_original_names_hold_the_same(kind, tmp_path):
    adapter = t2i(kind, downscale_factor=8, **{"channels": [32, 64]} if kind == "light_adapter" else {})
    unet, state = UNetConfig.from_dict(references.TINY_UNET), adapter.state_dict()
    spell = {name: t2i_adapters.original_name(None if kind.startswith("light") else 2, name) for name in state}
    expected = "body.5.block2.bias" if kind == "full_adapter" else "body.2.body.1.block2.bias"
    assert spell["adapter.body.2.resnets.1.block2.bias"] == expected
    save_file(state, tmp_path / "theirs.safetensors")
    save_file({spell[name]: tensor for name, tensor in state.items()}, tmp_path / "original.safetensors")
    one, other = (t2i_adapters.open_t2i_adapter(tmp_path / f"{name}.safetensors", unet, FAMILIES[0])
                  for name in ("theirs", "original"))
    assert one.shapes == other.shapes and not one.left_out and not other.left_out
    assert all(np.array_equal(one.tensors[name](), other.tensors[name]()) for name in one.tensors)


@pytest.mark.parametrize("kind, settings, arguments, count, tensors", [
    ("full_adapter", {}, (8, 3, [320, 640, 1280, 1280], [320, 640, 1280, 1280], 2, [False, True, True, True]), 77_369_280, 38),
    ("light_adapter", dict(channels=[320, 640, 1280], num_res_blocks=4),
     (8, 3, [320, 640, 1280, 1280], [80, 160, 320, 320], 4, [False, True, True, True]), 18_689_200, 80),
    ("full_adapter_xl", dict(downscale_factor=16),
     (16, 3, [320, 640, 1280, 1280], [320, 640, 1280, 1280], 2, [False, False, True, False]), 79_028_160, 38)],
    ids=["full", "light", "XL"])
def test_names_and_shapes_at_full_size_are_those_of_diffusers(kind, settings, arguments, count, tensors):
    with torch.device("meta"):
        theirs = TorchT2IAdapter(adapter_type=kind, **dict(
            in_channels=3, channels=[320, 640, 1280, 1280], num_res_blocks=2, downscale_factor=8) | settings)
    ours = parameters.shapes(T2IAdapter(*arguments))
    assert ours == {key: tuple(tensor.shape) for key, tensor in theirs.state_dict().items()}
    assert len(ours) == tensors and sum(int(np.prod(shape)) for shape in ours.values()) == count


def test_a_picture_with_a_t2i_adapter_equals_diffusers_within_one_level(tmp_path):
    theirs, ours = pairs.make_pair()
    adapter = t2i()
    adapter.save_pretrained(tmp_path / "t2i")
    components = {name: part for name, part in theirs.components.items() if name != "image_encoder"}
    led = StableDiffusionAdapterPipeline(**components, adapter=adapter, requires_safety_checker=False)
    led.set_progress_bar_config(disable=True)
    expected = pairs.their_picture(led, image=picture(48, 32), num_inference_steps=3, guidance_scale=5.0, height=32, width=48,
                                   adapter_conditioning_scale=0.6)
    plain = ours_asked(ours)
    ours.load_t2i_adapter(tmp_path / "t2i")
    found = ours_asked(ours, t2i_image=picture(48, 32), t2i_scale=0.6)
    agree("T2I-Adapter", "v1, levels of 255", found, expected, 1)
    assert np.abs(found - plain).max() > 3
    half = ours_asked(ours, t2i_image=picture(48, 32), t2i_scale=0.6, t2i_end=0.4)
    never = ours_asked(ours, t2i_image=picture(48, 32), t2i_scale=0.6, t2i_end=0.0)
    assert np.abs(half - found).max() > 0 and np.array_equal(never, plain)


def test_a_look_inside_names_the_layers_of_picture_adapters(drawn, tmp_path):
    theirs, ours, folder = drawn("v1")
    write(folder / "ip.safetensors", ip_adapter(theirs.unet, "plain", 24))
    t2i().save_pretrained(tmp_path / "t2i")
    asked = dict(negative_prompt=NEGATIVE, steps=2, seed=7, width=48, height=32, ip_image=picture(), t2i_image=picture(48, 32))
    try:
        ours.load_ip_adapter(folder / "ip.safetensors")
        ours.load_t2i_adapter(tmp_path / "t2i")
        expected, = ours.generate(PROMPT, **asked)
        found = trace(ours, PROMPT, **asked)
    finally:
        ours.load_ip_adapter(None)
        ours.load_t2i_adapter(None)
    parts = {name.partition(".")[0] for name in found.layers}
    assert parts == {*ours.models, "ip_adapter", "image_encoder", "t2i_adapter"}
    assert np.array_equal(levels(found.images[0]), levels(expected))


def test_a_t2i_adapter_for_other_levels_names_both(tmp_path):
    t2i(channels=[16, 64, 64]).save_pretrained(tmp_path / "t2i")
    with pytest.raises(UserError, match="for another family than Stable Diffusion v1: its levels have 16, 64, 64 channels"):
        t2i_adapters.open_t2i_adapter(tmp_path / "t2i", UNetConfig.from_dict(references.TINY_UNET), FAMILIES[0])
