"""--max-memory: what is chosen for which amount, weights that are read when used, and how right the estimates are."""
import gc
import os
import pathlib
import re
import subprocess
import sys
import tracemalloc
import types

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import save_file

import npdiffusion
from npdiffusion import kernels, loading
from npdiffusion.checkpoints import safetensors_file
from npdiffusion.checkpoints.part import Part
from npdiffusion.command import cli, generate, options
from npdiffusion.diffusion.guidance import Prediction
from npdiffusion.errors import UserError
from npdiffusion.jobs.entries import one_by_one
from npdiffusion.kernels import machine, threads
from npdiffusion.memory import budget, estimates, seconds
from npdiffusion.models import layers, parameters, taesd
from npdiffusion.models.conditioning import Conditioning
from npdiffusion.models.configs import TinyVAEConfig, UNetConfig
from npdiffusion.models.controlnet import Control, ControlNetModel, Controls
from npdiffusion.models.on_disk import OnDisk, keep
from npdiffusion.models.unet import UNet2DConditionModel
from npdiffusion.models.vae import AutoencoderKL
from npdiffusion.pictures.images import to_images
from npdiffusion.request import largest_size
from npdiffusion.settings import Request
from npdiffusion.settings.kinds import Memory
from tests import folders, loras

EMBEDDED = 61e6        # bytes of its weights in float32; feature maps of a picture take 13e6


@pytest.fixture(autouse=True)
def on_one_thread_of_a_processor_that_multiplies_bytes(monkeypatch):
    monkeypatch.setattr(threads, "_count", 1)
    monkeypatch.setattr(machine, "multiplies_bytes", lambda: True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(folders.write_model(tmp_path_factory.mktemp("model") / "model", folders.torch_models()))


def on_disk(model):
    """How many weights of a model are not in memory."""
    return sum(isinstance(vars(each).get("weight"), OnDisk) for _, each in parameters.modules(model))


# ---- amounts

@pytest.mark.parametrize(("text", "expected"), [
    ("4GB", 4e9), ("1.5 gb", 1.5e9), ("900MiB", 900 * 2**20), ("2g", 2e9), (3e9, 3e9)])
def test_amounts_are_read(text, expected):
    assert Memory.bytes(text) == expected


@pytest.mark.parametrize("text", ["", "much", "4 TB", "-1GB", "0GB", 0, -5, True, "1e9", None, "9" * 30])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(UserError, match="an amount like 4GB or 900MB is needed"):
        Memory().check("max_memory", text)


@pytest.mark.parametrize("text", ["foo", "", "0GB", "4 TB"])
def test_the_command_refuses_what_is_no_amount_before_anything_else(text, capsys):
    assert cli.main(["a red apple", "-m", "/nowhere", "--max-memory", text]) == 2
    assert capsys.readouterr().err == (
        f"npdiffusion: error: --max-memory: {text!r} is no amount of memory like 4GB or 900MB\n")


# ---- choices

@pytest.mark.parametrize(("room", "dtype", "expected"), [
    (1.3, None, ("float32", 0)), (0.75, None, ("bfloat16", 0)), (0.6, None, ("int8", 0)), (0.4, None, ("bfloat16", 1)),
    (0.75, "float32", ("float32", 1))])
def test_the_choice_follows_the_amount(room, dtype, expected):
    limit = budget.RUNTIME + room * EMBEDDED
    pipeline = npdiffusion.load(max_memory=limit, dtype=dtype)
    assert (pipeline.budget.dtype, on_disk(pipeline.unet) > 0) == expected
    kept = [layer.weight.nbytes for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)
            for _, layer in parameters.modules(part) if hasattr(vars(layer).get("weight"), "nbytes")]
    assert sum(kept) <= limit - budget.RUNTIME


def test_tiles_come_last_and_are_as_large_as_fits():
    pipeline = npdiffusion.load()
    assert list(budget.tile_sizes(pipeline.vae.config, 512, 512, "off")) == [None]
    assert list(budget.tile_sizes(pipeline.vae.config, 256, 192, "auto")) == [None, 224, 192, 160, 128]
    chosen = budget.Budget(budget.RUNTIME + 30e6, "bfloat16", 512, 512, kept=0)
    tile = chosen.choose(pipeline.vae.config, 512, 512)
    assert estimates.picture(pipeline.vae.config, 512, 512, tile) <= 30e6
    assert estimates.picture(pipeline.vae.config, 512, 512, tile + 32) > 30e6


def test_too_little_is_refused_before_weights_are_read_with_what_is_needed(capsys, monkeypatch):
    monkeypatch.setattr(Part, "fill", None)                        # would raise TypeError
    assert cli.main(["a red apple", "--max-memory", "150MB"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("npdiffusion: error: max_memory is 0.15 GB: too little for 128×128 pixels, which need at "
                           "least 0.2")


def test_a_picture_larger_than_planned_is_refused_before_it_is_begun():
    limit = budget.RUNTIME + 1.3 * EMBEDDED
    pipeline = npdiffusion.load(max_memory=limit)
    with pytest.raises(UserError, match=rf"1 × 1024×1024 pixels: need about .* but max_memory is {limit / 1e9:.2f} GB"):
        pipeline.generate("a", steps=1, seed=0, width=1024, height=1024)


def test_the_numpy_backend_has_no_budget(monkeypatch):
    monkeypatch.setattr(kernels, "_chosen", "numpy")
    with pytest.raises(UserError, match="max_memory: the numpy backend"):
        npdiffusion.load(max_memory="4GB")


def test_the_largest_weights_are_kept():
    assert keep({"a": 5, "b": 3, "c": 9, "d": 1}, 11) == ({"c", "d"}, 10)


# ---- what has to fit

@pytest.fixture(scope="module")
def parts():
    """Those of the embedded model, checked but empty; it was trained with 128 × 128 pixels."""
    return loading.open_checkpoint().model.parts


def planned(*arguments):
    """What is chosen for a command with the embedded model"""
    asked = options.parse_options(["a", "--max-memory", "4GB", *arguments])
    return loading.open_checkpoint().fit(asked.max_memory, requests=[entry.request for entry in asked.entries])


@pytest.mark.parametrize(("arguments", "size"), [
    ([], (128, 128)), (["-W", "256"], (256, 128)), (["-H", "320"], (128, 320)), (["--hires", "2"], (256, 256)),
    (["-W", "256", "--hires", "1.5"], (384, 192)), (["--hires", "1.3"], (168, 168)),                  # of 166.4
    (["-i", "a.png", "--strength", "0.5"], (128, 128)),
    (["-i", "a.png", "--outpaint", "left=216,bottom=8"], (256, 32)),
    (["-i", "a.png", "--outpaint", "left=216,bottom=8", "-H", "512"], (256, 512)),
    (["-i", "a.png", "--outpaint", "left=216,bottom=8", "--only-masked", "8"], (128, 128))])
def test_the_size_that_is_planned_is_that_of_the_last_pass(arguments, size, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 24)).save("a.png")
    chosen = planned(*arguments)
    assert (chosen.width, chosen.height) == size


def test_of_many_pictures_that_which_needs_most_is_planned(tmp_path):
    (tmp_path / "jobs.csv").write_text("prompt,width,height,hires\na,512,512,\nb,384,512,1.5\nc,,,2\nd,768,,\n")
    chosen = planned("--prompts", str(tmp_path / "jobs.csv"))
    assert (chosen.width, chosen.height) == (576, 768)


@pytest.mark.parametrize(("size", "expected"), [
    (None, (128, 128)), ((256, None), (256, 128)), ((None, 64), (128, 64)), ((64, 72), (64, 72))])
def test_a_side_that_is_not_asked_for_is_that_of_the_training(size, expected):
    requests = [] if size is None else [Request("", width=size[0], height=size[1])]
    chosen = loading.open_checkpoint().fit("4GB", requests=requests)
    assert (chosen.width, chosen.height) == expected


@pytest.mark.parametrize(("scale", "images"), [("7.5", 2), ("1", 1), ("1.5", 2), ("0.5", 1)])
def test_a_step_computes_two_images_with_guidance(scale, images, parts):
    assert planned("--cfg-scale", scale).images == images
    assert planned().images == 2


def test_without_guidance_half_of_the_feature_maps_have_to_fit(parts):
    maps = sum(estimate(parts["unet"].model.config, *given, 2) for estimate, given in (
        (estimates.step, (128, 128)), (estimates.words, ())))
    weights = sum(parameters.nbytes(part.model, "float32") for part in parts.values())
    for images, limit in (2, budget.RUNTIME + weights + maps), (1, budget.RUNTIME + weights + maps / 2):
        assert budget.plan(parts, limit, [(1024, 1024)], images=images, mode="on").dtype == "float32"
        assert budget.plan(parts, limit - 1, [(1024, 1024)], images=images, mode="on").dtype == "bfloat16"


def test_a_picture_in_one_piece_is_refused_where_only_tiles_fit(parts):
    maps = estimates.step(parts["unet"].model.config, 64, 64, 2)
    limit = budget.RUNTIME + maps + sum(parameters.nbytes(part.model, "float32") for part in parts.values())
    assert estimates.picture(parts["vae"].model.config, 512, 512) > limit - budget.RUNTIME
    with pytest.raises(UserError, match="max_memory is .*: too little for 512×512 pixels"):
        budget.plan(parts, limit, [(512, 512)], mode="off")
    assert budget.plan(parts, limit, [(512, 512)], mode="on").tile == 128             # pixels that it was trained with
    assert 128 <= budget.plan(parts, limit, [(512, 512)], mode="auto").tile < 512
    assert budget.plan(parts, 4e9, [(512, 512)], mode="off").tile is None
    assert planned("--vae-tiling", "on").tile == 128


def test_taesd_for_previews_is_kept_beside_the_model_and_decodes_in_one_piece(parts):
    preview = taesd.AutoencoderTiny(TinyVAEConfig())
    its_weights = 4 * sum(parameter.numel() for parameter in AutoencoderTiny().parameters())
    alone = budget.plan(parts, 4e9, [(512, 512)], mode="on")
    beside = budget.plan(parts, 4e9, [(512, 512)], mode="on", preview_vae=preview)
    assert beside.kept - alone.kept == its_weights
    limit = budget.RUNTIME + alone.kept + its_weights + estimates.picture(TinyVAEConfig(), 512, 512)
    assert budget.plan(parts, limit, [(512, 512)], mode="on", preview_vae=preview).dtype == "float32"
    assert budget.plan(parts, limit - 1, [(512, 512)], mode="on", preview_vae=preview).dtype == "bfloat16"
    half = budget.plan(parts, limit - 1, [(512, 512)], mode="on", preview_vae=preview).kept
    less = limit - beside.kept + half - 1
    part = budget.plan(parts, less, [(512, 512)], mode="on", preview_vae=preview)
    assert part.dtype == "bfloat16" and part.on_disk and not part.read
    streamed = budget.plan(parts, less, [(512, 512)], "bfloat16", mode="on", preview_vae=preview)
    assert streamed.on_disk and its_weights < streamed.kept < half
    assert streamed.room() >= estimates.picture(TinyVAEConfig(), 512, 512)


def test_the_command_hands_taesd_over_for_the_budget(pipeline, tmp_path):
    pipeline.budget = None
    save_file(AutoencoderTiny().state_dict(), tmp_path / "taesd.safetensors")
    arguments = ["a", "-s", "1", "--steps", "1", "--max-memory", "1GB", "--preview", "taesd", "--taesd", "taesd.safetensors"]
    assert cli.main(arguments) == 0
    assert isinstance(pipeline.loaded[-1][1]["preview_vae"], taesd.AutoencoderTiny)
    assert cli.main(arguments[:-4]) == 0
    assert pipeline.loaded[-1][1]["preview_vae"] is None


@pytest.mark.skipif(sys.platform != "linux", reason="the most memory that a process took is read from /proc")
@pytest.mark.parametrize("mode", ["RGBA", "RGB", "P"])
def test_reading_a_picture_takes_no_more_memory_than_is_estimated(mode, tmp_path):
    Image.new(mode, (2000, 1500)).save(tmp_path / "x.png")
    made = ("import re, sys; from npdiffusion.pictures import images; "
            "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); "
            "images.open_image(sys.argv[1]); before = peak(); images.open_image(sys.argv[2]); print(peak() - before)")
    Image.new(mode, (10, 10)).save(tmp_path / "small.png")
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(npdiffusion.__file__).parent.parent)}
    grown = int(subprocess.run([sys.executable, "-c", made, tmp_path / "small.png", tmp_path / "x.png"], env=environment,
                               capture_output=True, text=True, check=True).stdout)
    estimated = estimates.reading(tmp_path / "x.png")
    assert estimated == 2 * 4 * 2000 * 1500 and 0.4 * estimated < grown < estimated + 6e6


def test_a_picture_too_large_to_be_read_within_the_amount_is_refused_before_it_is(tmp_path, monkeypatch, capsys):
    Image.new("L", (8000, 8000)).save(tmp_path / "x.png")
    Image.init()                                         # whose plugins load little pictures of their own
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was read"))
    assert cli.main(["a", "-i", str(tmp_path / "x.png"), "--max-memory", "300MB"]) == 1
    assert "x.png: reading this picture takes 0.51 GB beside" in capsys.readouterr().err
    with pytest.raises(UserError, match="reading this picture takes 0.51 GB"):
        npdiffusion.load(max_memory="300MB", requests=[Request("a", init_image=str(tmp_path / "x.png"))])


def test_the_whole_picture_is_counted_beside_the_tiles_that_it_is_decoded_in(parts):
    config = parts["vae"].model.config
    vae = AutoencoderKL(config)
    latents = np.zeros((1, 128, 128, config.latent_channels), np.float32)
    for _, owner, attribute in parameters.walk(vae):
        if parameters.is_packed(owner, attribute):
            owner.prepare("float32")
    vae.decode(latents[:, :32, :32])                                       # kernels get their working memory
    tracemalloc.start()
    picture = vae.decode(latents, tile=128)
    to_images(picture)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole = estimates.picture(config, *picture.shape[2:0:-1], tile=128)
    assert peak == pytest.approx(whole, rel=0.2) and whole > estimates.picture(config, 128, 128) + picture.nbytes


def test_pictures_that_are_there_already_need_no_memory(pipeline, tmp_path):
    pipeline.budget = None
    command = ["--prompts", "jobs.txt", "-o", "out/", "--steps", "1", "--max-memory", "1GB"]
    for text, sizes in (("a --width 512 --seed 1\n", [(512, 128)]),
                        ("a --width 512 --seed 1\nb --width 64\nc --height 72", [(64, 128), (128, 72)])):
        (tmp_path / "jobs.txt").write_text(text)
        assert cli.main(command) == 0
        requests = pipeline.loaded[-1][1]["requests"]
        assert [largest_size(request, (128, 128), 8) for request in requests] == sizes


# ---- results

@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_pictures_are_the_same_bit_for_bit_with_weights_on_disk(model, dtype, monkeypatch):
    monkeypatch.setattr(parameters, "SMALLEST_ON_DISK", 1000)
    options = dict(steps=2, seed=1, width=32, height=32)
    whole = npdiffusion.load(model, dtype=dtype)
    streamed = npdiffusion.load(model, dtype=dtype, max_memory=budget.RUNTIME + 2.2e6,
                                requests=[Request("", width=32, height=32)])
    counts = [on_disk(getattr(streamed, part)) for part in ("unet", "vae", "text_encoder")]
    assert streamed.budget.dtype == dtype and min(counts) > 0
    a, b = whole.generate("a red apple", **options)[0], streamed.generate("a red apple", **options)[0]
    assert np.array_equal(np.asarray(a), np.asarray(b))
    ids = np.arange(77)[None]
    assert np.array_equal(whole.text_encoder(ids), streamed.text_encoder(ids))


def test_a_lora_acts_on_weights_on_disk_and_can_be_taken_out(model, tmp_path, monkeypatch):
    monkeypatch.setattr(parameters, "SMALLEST_ON_DISK", 1000)
    save_file(loras.kohya(loras.pairs(folders.torch_models())), tmp_path / "ink.safetensors")
    options = dict(steps=1, seed=1, width=16, height=16)
    found = []
    for settings in {}, {"max_memory": budget.RUNTIME + 2.2e6}:
        pipeline = npdiffusion.load(model, dtype="bfloat16", **settings)
        before = pipeline.generate("a", **options)[0]
        pipeline.load_lora_weights(tmp_path / "ink.safetensors")
        if settings:
            monkeypatch.setattr(pipeline.budget, "merging", 0)                 # which is told, see test_large_models.py
        with_lora = pipeline.generate("a", **options)[0]
        pipeline.unload_lora_weights()
        assert np.array_equal(np.asarray(pipeline.generate("a", **options)[0]), np.asarray(before))
        found.append(np.asarray(with_lora))
    assert on_disk(pipeline.unet) > 0 and not np.array_equal(found[0], np.asarray(before))
    assert np.array_equal(*found)


def test_both_backends_read_a_weight_that_is_on_disk(each_backend, tmp_path):
    values = np.random.default_rng(0).standard_normal((24, 32), dtype=np.float32)
    save_file({"w": torch.from_numpy(values).half()}, tmp_path / "w.safetensors")
    tensor = safetensors_file.read_file(tmp_path / "w.safetensors")["w"]
    linear, x = layers.Linear(32, 24), np.random.default_rng(1).standard_normal((3, 32), dtype=np.float32)
    linear.weight = OnDisk(tensor, (24, 32), "file")
    linear.prepare("float32")
    np.testing.assert_allclose(linear(x), x @ values.astype(np.float16).astype(np.float32).T, rtol=1e-5, atol=1e-5)
    table = layers.Embedding(24, 32)
    table.weight = OnDisk(tensor, (24, 32), "file")
    assert np.array_equal(table(np.array([3, 5])), values[[3, 5]].astype(np.float16).astype(np.float32))


def test_a_weight_on_disk_that_is_not_finite_is_named(tmp_path):
    save_file({"w": torch.full((4, 4), torch.inf)}, tmp_path / "w.safetensors")
    weight = OnDisk(safetensors_file.read_file(tmp_path / "w.safetensors")["w"], (4, 4), "file")
    with pytest.raises(UserError, match="file: w holds values that are not finite"):
        weight.read()


def test_the_command_tells_what_was_chosen_and_how_long_a_step_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    amount = f"{(budget.RUNTIME + 24e6) / 1e9:.3f}GB"
    assert cli.main(["a red apple", "--steps", "2", "-s", "1", "--max-memory", amount]) == 0
    told = next(line for line in capsys.readouterr().err.splitlines() if line.startswith(f"memory {amount[:4]} GB: "))
    assert re.search(r"bfloat16 weights, 0\.0[12] GB of the UNet's read from disk in each step, about", told)


def test_where_memory_is_short_the_model_is_fitted_into_what_there_is_with_a_note(monkeypatch):
    monkeypatch.setattr(budget, "RUNTIME", 10e6)
    monkeypatch.setattr(machine, "memory_available", lambda: EMBEDDED)
    with pytest.warns(UserWarning, match=r"needs about 0.1 GB of memory, 0.1 GB are available, so it is fitted into that"):
        pipeline = npdiffusion.load()
    assert pipeline.budget.dtype == "bfloat16" and pipeline.budget.limit == EMBEDDED
    monkeypatch.setattr(machine, "memory_available", lambda: 3 * EMBEDDED)
    assert npdiffusion.load().budget is None


@pytest.mark.parametrize(("side", "said"), [(4096, "4096×4096 pixels: a step takes about "), (512, ""), (128, "")])
def test_that_a_step_takes_minutes_is_said_beforehand(side, said, monkeypatch, capsys):
    monkeypatch.setattr(seconds, "of_step", lambda networks, height, width, *others: height * width / 3000)
    entry = one_by_one(Request("a", width=side, height=side), set())[0]
    generate.foretell(npdiffusion.load(), [entry])
    told = capsys.readouterr().err
    assert told.startswith(said) and (told.endswith("minutes\n") if said else told == "")


# ---- estimates

CONFIG = UNetConfig(block_out_channels=(32, 64, 128, 128), norm_num_groups=8, cross_attention_dim=76, heads=(2,) * 4)


def prepared(model):
    """A model of zeros, in the layout of the kernels"""
    for _, owner, attribute in parameters.walk(model):
        if parameters.is_packed(owner, attribute):
            owner.prepare("float32")
    return model


def peak_of(call):
    """Bytes that a call takes at most, after one that gives kernels their working memory"""
    call()
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    call()
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize(("images", "height", "width"), [(1, 32, 32), (2, 48, 40)])
def test_feature_maps_of_the_unet_are_as_estimated(images, height, width):
    unet = prepared(UNet2DConditionModel(CONFIG))
    latents, context = np.zeros((1, height, width, 4), np.float32), Conditioning(np.zeros((images, 77, 76), np.float32))
    assert peak_of(lambda: unet(latents, 5.0, context)) == pytest.approx(
        estimates.step(CONFIG, width, height, images), rel=0.15)


@pytest.mark.parametrize("controlnets", [1, 2])
@pytest.mark.parametrize(("images", "height", "width"), [(1, 32, 32), (2, 48, 40)])
def test_what_controlnets_add_to_feature_maps_is_as_estimated(images, height, width, controlnets):
    unet, model = prepared(UNet2DConditionModel(CONFIG)), prepared(ControlNetModel(CONFIG, (8, 12, 16)))
    hint = np.zeros((1, height, width, 32), np.float32)
    control = Controls([Control(model, hint) for _ in range(controlnets)])
    latents, context = np.zeros((1, height, width, 4), np.float32), Conditioning(np.zeros((images, 77, 76), np.float32))
    contexts = types.SimpleNamespace(conditioning=lambda call: context)
    predict = Prediction(unet, contexts, 7.5 if images == 2 else 1, control=control)

    def steps():
        for call in range(3):
            predict(latents, 5.0, call)
    assert peak_of(steps) == pytest.approx(
        estimates.step(CONFIG, width, height, images) + estimates.control(CONFIG, width, height, images), rel=0.15)
