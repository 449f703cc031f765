"""TAESD and replacement VAEs against diffusers, in every way in which files are named; tiles against diffusers' own."""
import json
import tracemalloc

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL as TorchAutoencoderKL
from diffusers import AutoencoderTiny as TorchAutoencoderTiny
from PIL import Image
from safetensors.torch import save_file

import npdiffusion
from npdiffusion.checkpoints import autoencoders
from npdiffusion.checkpoints.original_names import vae_name
from npdiffusion.errors import UserError
from npdiffusion.kernels import machine, threads
from npdiffusion.memory import estimates, tiles
from npdiffusion.models import tiling
from npdiffusion.models.configs import TinyVAEConfig, VAEConfig
from tests import folders, references
from tests.differences import agree
from tests.errors import message_of
from tests.loaded import load_parts
from tests.references import channels_first, channels_last, random


@pytest.fixture(autouse=True)
def on_one_thread(monkeypatch):
    """Tiles are small: threads, torch's too, would wait for each other most of the time."""
    monkeypatch.setattr(threads, "_count", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loaded(path, dtype="float32"):
    """The model that is in a file or folder, filled."""
    part = autoencoders.open_autoencoder(str(path))
    part.fill(dtype)
    return part.model


def message(path):
    return message_of(loaded, path)


@torch.no_grad()
def torch_taesd(seed=0, **settings):
    torch.manual_seed(seed)
    return references.make_demanding(TorchAutoencoderTiny(**settings), seed)


@pytest.fixture(scope="module")
def taesd():
    return torch_taesd()


@pytest.fixture(scope="module")
def vae():
    """Small, but with the 32 groups that files without settings are taken to have."""
    return references.torch_vae(**references.TINY_VAE | dict(block_out_channels=(32, 64, 64), norm_num_groups=32))


def original_taesd(model, folder, parts=("encoder", "decoder")):
    """Write TAESD's own files: names of a Sequential, in which the decoder's begins with a clamp."""
    for part in parts:
        shift = 1 if part == "decoder" else 0
        tensors = {}
        for name, tensor in model.state_dict().items():
            side, _, number, rest = name.split(".", 3)
            if side == part:
                tensors[f"{int(number) + shift}.{rest}"] = tensor.contiguous().clone()
        save_file(tensors, folder / f"taesd_{part}.safetensors")
    return folder / f"taesd_{parts[-1]}.safetensors"


@torch.no_grad()
def compare(what, ours, theirs, pixels=(40, 24), part="replacement VAE"):
    """Encoding and decoding against torch's."""
    f = ours.config.reduction
    images = np.tanh(random(1, *pixels, 3))
    latents = random(1, pixels[0] // f, pixels[1] // f, 4, seed=1)
    if isinstance(theirs, TorchAutoencoderTiny):
        found = ours.latents(images)
        expected = theirs.encode(channels_first(images)).latents * theirs.config.scaling_factor
    else:
        found, expected = ours.encode(images)[0], theirs.encode(channels_first(images)).latent_dist.mean
    agree(part, f"{what}, encoding", found, channels_last(expected), 1e-4, relative=True)
    expected = theirs.decode(channels_first(latents) / ours.config.scaling_factor).sample
    agree(part, f"{what}, decoding", ours.decode(latents), channels_last(expected), 1e-4, relative=True)


# ---- TAESD

@pytest.mark.parametrize("settings", [{}, dict(
    encoder_block_out_channels=(16, 16, 16), decoder_block_out_channels=(16, 16, 16), num_encoder_blocks=(2, 1, 3),
    num_decoder_blocks=(1, 2, 1), scaling_factor=0.5)], ids=["its own size", "another"])
def test_taesd_in_diffusers_layout_equals_diffusers(each_backend, settings, tmp_path):
    theirs = torch_taesd(**settings)
    theirs.save_pretrained(tmp_path)
    compare(f"diffusers layout, {each_backend}", loaded(tmp_path), theirs, part="TAESD")


def test_taesd_from_its_original_files_equals_diffusers(taesd, tmp_path):
    file = original_taesd(taesd, tmp_path)
    for path in (file, tmp_path / "taesd_encoder.safetensors", tmp_path):
        compare("original files", loaded(path), taesd, part="TAESD")


def test_taesd_without_settings_beside_it_tells_its_sizes(tmp_path):
    theirs = torch_taesd(encoder_block_out_channels=(16,) * 3, decoder_block_out_channels=(16,) * 3,
                         num_encoder_blocks=(2, 1, 3), num_decoder_blocks=(1, 2, 1))
    save_file(theirs.state_dict(), tmp_path / "taesd.safetensors")
    ours = loaded(tmp_path / "taesd.safetensors")
    assert ours.config == TinyVAEConfig(4, 16, (2, 1, 3), (1, 2, 1))
    compare("one file", ours, theirs, part="TAESD")


def test_taesd_with_its_decoder_alone_decodes_and_says_what_encoding_needs(taesd, tmp_path):
    ours = loaded(original_taesd(taesd, tmp_path, ["decoder"]))
    with torch.no_grad():
        expected = taesd.decode(channels_first(random(1, 3, 4, 4))).sample
    agree("TAESD", "decoder alone", ours.decode(random(1, 3, 4, 4)), channels_last(expected), 1e-4, relative=True)
    with pytest.raises(UserError, match="can only decode: put taesd_encoder.safetensors beside"):
        ours.latents(random(1, 8, 8, 3))


def test_decoding_takes_no_more_memory_than_is_estimated(taesd, pair, tmp_path):
    taesd.save_pretrained(tmp_path)
    for ours, latents, size, tile in (
            (loaded(tmp_path), random(1, 24, 24, 4), 192, None), (pair[1], random(1, 48, 48, 4), 96, 96)):
        ours.decode(latents, tile)
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        image = ours.decode(latents, tile)
        peak = tracemalloc.get_traced_memory()[1] - before - 2 * image.nbytes        # rows of tiles, and all of them
        tracemalloc.stop()
        assert 0.7 * estimates.picture(ours.config, size, size) < peak < estimates.picture(ours.config, size, size)


# ---- other autoencoders

@pytest.fixture(params=["diffusers folder", "its file", "diffusers file", "original", "within a model"])
def named(request, vae, tmp_path):
    """A path to the autoencoder, written in one of the ways that people have it."""
    tensors = {name: tensor.contiguous().clone() for name, tensor in vae.state_dict().items()}
    if request.param in ("diffusers folder", "its file"):
        vae.save_pretrained(tmp_path)
        return tmp_path / "diffusion_pytorch_model.safetensors" if request.param == "its file" else tmp_path
    if request.param != "diffusers file":
        spell = vae_name(VAEConfig.from_dict(dict(vae.config)), "first_stage_model.")
        cut = "first_stage_model." if request.param == "original" else ""
        matrices = [name for name, tensor in tensors.items() if ".attentions." in name and tensor.ndim == 2]
        tensors = {spell(name).removeprefix(cut): tensor[:, :, None, None] if name in matrices else tensor
                   for name, tensor in tensors.items()}
        tensors |= {"loss.logvar": torch.zeros(1)} if cut else {"model.diffusion_model.out.0.weight": torch.zeros(1)}
    save_file(tensors, tmp_path / "vae.safetensors")
    return tmp_path / "vae.safetensors"


def test_a_replacement_equals_diffusers_however_it_is_named(named, vae, request):
    ours = loaded(named)
    assert ours.config.scaling_factor == (0.3 if named.name.startswith("diffusion") or named.is_dir() else 0.18215)
    compare(request.node.callspec.id, ours, vae)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return folders.write_model(tmp_path_factory.mktemp("model") / "model", folders.torch_models())


def test_a_pipeline_encodes_and_decodes_with_its_replacement(model_folder, tmp_path):
    """Image to image with TAESD as in diffusers, where nothing is drawn for encoding"""
    from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    theirs = torch_taesd(encoder_block_out_channels=(16,) * 2, decoder_block_out_channels=(16,) * 2,
                         num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    theirs.save_pretrained(tmp_path)
    start = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8))
    pipeline = StableDiffusionImg2ImgPipeline(
        theirs, CLIPTextModel.from_pretrained(model_folder / "text_encoder"),
        CLIPTokenizer.from_pretrained(model_folder / "tokenizer"),
        UNet2DConditionModel.from_pretrained(model_folder / "unet"),
        DDIMScheduler.from_config(folders.SCHEDULER), None, None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline("a red apple", image=start, strength=0.5, num_inference_steps=4, guidance_scale=3.0,
                        output_type="np", generator=torch.Generator().manual_seed(1)).images[0]
    image, = npdiffusion.load(str(model_folder), vae=str(tmp_path)).generate(
        "a red apple", init_image=start, strength=0.5, steps=4, guidance_scale=3.0, sampler="ddim", seed=1, width=32,
        height=16)
    agree("TAESD", "image to image", np.asarray(image), (255 * expected).round(), 1)


def test_a_model_saved_with_taesd_in_it_is_loaded(model_folder, tmp_path):
    import shutil
    folder = shutil.copytree(model_folder, tmp_path / "model")
    shutil.rmtree(folder / "vae")
    theirs = torch_taesd(encoder_block_out_channels=(16,) * 2, decoder_block_out_channels=(16,) * 2,
                         num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    theirs.save_pretrained(folder / "vae")
    compare("within a model", load_parts(folder)["vae"], theirs, part="TAESD")


# ---- what is wrong with a file

def test_a_vae_of_another_family_is_refused(model_folder, tmp_path):
    torch_taesd(latent_channels=16, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
                num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).save_pretrained(tmp_path / "wide")
    torch_taesd().save_pretrained(tmp_path / "deep")
    for name, told in (("wide", "has 16 channels in its latents, the model's own 4"),
                       ("deep", "has 8 pixels to a latent pixel, the model's own 2")):
        with pytest.raises(UserError, match=told):
            load_parts(model_folder, vae=str(tmp_path / name))


@pytest.mark.parametrize(("make", "told"), [
    (lambda path: path / "nothing.safetensors", "nothing.safetensors: no such file or folder (a VAE was expected)"),
    (lambda path: path, "no VAE in this folder, neither config.json nor taesd_encoder"),
    (lambda path: written(path, {"lora_unet.lora_up.weight": torch.zeros(2)}), "not a VAE; its tensors are lora_unet"),
    (lambda path: written(path, {"encoder.down.0.block.0.conv1.weight": torch.zeros(2)}), "those of a known VAE (at "),
    (lambda path: written(path, {"decoder.layers.x.weight": torch.zeros(2)}), "not those of a known VAE (at "),
    (lambda path: written(path, {"1.conv.0.weight": torch.zeros(2), "0.weight": torch.zeros(2)}), "taesd_decoder.safe"),
    (lambda path: written(path, {"3.conv.0.weight": torch.zeros(2), "9" * 40 + ".weight": torch.zeros(2)}), "(at "),
], ids=["missing", "empty folder", "LoRA", "cut off", "no number", "encoder alone", "large number"])
def test_a_file_that_is_no_vae_is_named(make, told, tmp_path):
    assert told in message(make(tmp_path))


def written(folder, tensors):
    save_file(tensors, folder / "file.safetensors")
    return folder / "file.safetensors"


@pytest.mark.parametrize("settings", [dict(act_fn="silu"), dict(num_decoder_blocks=[1, 1]),
                                      dict(upsampling_scaling_factor=4),
                                      dict(decoder_block_out_channels=[64, 32, 64, 64]), dict(latent_channels="4")])
def test_settings_that_are_not_taesds_are_named(settings, taesd, tmp_path):
    taesd.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text()) | settings
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert f"config.json: {next(iter(settings))} = " in message(tmp_path)


# ---- tiles

@pytest.fixture(scope="module")
def pair():
    """(diffusers' VAE, with tiles of 32 pixels, 8 latent pixels, and ours)"""
    theirs = references.torch_vae(**references.TINY_VAE)
    theirs.enable_tiling()
    return theirs, references.twin(theirs)


@pytest.mark.parametrize("size", [(8, 9), (24, 20), (13, 31), (40, 7)])
@torch.no_grad()
def test_tiles_are_diffusers_own(pair, size):
    theirs, ours = pair
    latents, images = random(2, *size, 4), np.tanh(random(1, 4 * size[0], 4 * size[1], 3))
    expected = theirs.decode(channels_first(latents) / 0.3).sample
    agree("VAE tiling", f"decoding {size}", ours.decode(latents, 32), channels_last(expected), 1e-4, relative=True)
    expected = theirs.encode(channels_first(images)).latent_dist.mean
    agree("VAE tiling", f"encoding {size}", ours.encode(images, 32)[0], channels_last(expected), 1e-4, relative=True)


def test_a_picture_no_larger_than_a_tile_is_not_tiled():
    x = random(1, 8, 8, 4)
    assert tiling.tiled(lambda tile: tile, x, 8, 8) is x


def test_tiles_of_something_local_leave_no_seams():
    """A function that looks at no neighbours is the same in tiles."""
    x = random(1, 45, 70, 3)
    np.testing.assert_allclose(tiling.tiled(lambda tile: 2 * tile, x, 16, 16), 2 * x, rtol=1e-6)


@pytest.mark.parametrize(("mode", "side", "available", "tile"), [
    ("auto", 512, None, None), ("auto", 1024, None, 512), ("auto", 512, 5e8, 512), ("on", 512, None, 512),
    ("off", 4096, None, None)])
def test_tiles_are_chosen_where_one_piece_would_be_too_large(mode, side, available, tile, monkeypatch):
    monkeypatch.setattr(machine, "memory_available", lambda: available)
    assert tiles.choose(VAEConfig(), side, side, mode) == tile


def test_an_unknown_choice_of_tiles_names_the_nearest():
    with pytest.raises(UserError, match="vae_tiling is 'atuo': did you mean auto?"):
        tiles.choose(VAEConfig(), 64, 64, "atuo")


def test_a_pipeline_takes_pictures_in_tiles_as_diffusers_does(model_folder):
    pipeline = npdiffusion.load(str(model_folder))
    options = dict(steps=2, seed=0, width=48, height=32)
    theirs = TorchAutoencoderKL.from_pretrained(model_folder / "vae").eval()
    theirs.enable_tiling()
    last = []
    image, = pipeline.generate("a", **options, vae_tiling="on",
                               callback=lambda step, steps, latents: last.append(latents))
    whole, = pipeline.generate("a", **options)
    with torch.no_grad():
        expected = theirs.decode(channels_first(last[-1]) / theirs.config.scaling_factor).sample
    expected = channels_last(expected.mul(0.5).add(0.5).clamp(0, 1))[0]
    agree("VAE tiling", "a pipeline's picture", np.asarray(image), (255 * expected).round(), 1)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(whole)).max() > 1


@pytest.mark.parametrize("painting", [
    dict(init_image=Image.new("RGB", (48, 32), "red")), dict(hires=1.5, hires_upscaler="lanczos"),
    dict(init_image=Image.new("RGB", (48, 32), "red"), mask_image=Image.new("L", (48, 32), 255), strength=0.5)],
    ids=["image to image", "hires fix", "inpainting"])
def test_everything_that_a_picture_asks_of_the_autoencoder_is_done_in_its_tiles(painting, model_folder, monkeypatch):
    pipeline, found = npdiffusion.load(str(model_folder)), []
    for name in ("encode", "decode"):
        def record(x, tile=None, method=getattr(pipeline.vae, name)):  # noqa: B008, the method of this turn
            found.append(tile)
            return method(x, tile)
        monkeypatch.setattr(pipeline.vae, name, record)
    pipeline.generate("a", steps=2, seed=0, width=48, height=32, vae_tiling="on", **painting)
    assert len(found) > 1 and set(found) == {pipeline.vae.config.sample_size}
