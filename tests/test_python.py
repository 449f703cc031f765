"""Using the library from Python, as a user of diffusers would."""
import inspect
import io
import os
import pickle
import sys
import weakref

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

import npdiffusion
from npdiffusion.errors import UserError
from npdiffusion.models.configs import TinyVAEConfig
from npdiffusion.models.taesd import AutoencoderTiny
from npdiffusion.pictures import made, text_inside
from npdiffusion.settings import SETTINGS
from tests.processes import output_of

PROMPT = "a red apple"
FAST = dict(steps=1, seed=3, width=64, height=64)


@pytest.fixture(scope="module")
def pipeline():
    return npdiffusion.load()


def test_a_picture_that_is_saved_has_its_settings_inside(pipeline, tmp_path):
    image, = pipeline.generate(PROMPT, "blue", **FAST)
    image.save(tmp_path / "apple.png")
    assert text_inside.read_text(tmp_path / "apple.png") == image.info["parameters"]
    for part in "Negative prompt: blue\nSteps: 1, Sampler: DDIM", "Seed: 3", "Model: embedded":
        assert part in image.info["parameters"]


@pytest.mark.parametrize("name", ["apple.jpg", "apple.jpeg", "apple.webp", "APPLE.PNG"])
def test_jpeg_webp_and_png_have_their_settings_inside(name, pipeline, tmp_path):
    image, = pipeline.generate("a red apple (é)", "blue", **FAST)
    image.save(tmp_path / name)
    assert text_inside.read_text(tmp_path / name) == image.info["parameters"]
    with open(tmp_path / "memory", "wb") as file:
        image.save(file, format=Image.registered_extensions()[(tmp_path / name).suffix.lower()])
    with open(tmp_path / "memory", "rb") as file:
        assert text_inside.from_file(file, "memory") == image.info["parameters"]
    with open(tmp_path / f"open-{name}", "wb") as file:
        image.save(file)
    assert text_inside.read_text(tmp_path / f"open-{name}") == image.info["parameters"]


def test_a_copy_and_a_picture_from_another_process_keep_their_settings(pipeline, tmp_path):
    image, = pipeline.generate(PROMPT, **FAST)
    for other in image.copy(), pickle.loads(pickle.dumps(pipeline.generate(PROMPT, **FAST)))[0]:
        other.save(tmp_path / "apple.png")
        assert text_inside.read_text(tmp_path / "apple.png") == image.info["parameters"]
        assert np.array_equal(np.asarray(other), np.asarray(image))


def test_settings_that_are_given_to_save_go_before_and_other_formats_are_saved_too(pipeline, tmp_path):
    image, = pipeline.generate(PROMPT, **FAST)
    image.save(tmp_path / "plain.png", pnginfo=PngInfo())
    image.save(tmp_path / "plain.jpg", exif=b"")
    for name in "plain.png", "plain.jpg":
        with pytest.raises(UserError, match="there are no settings inside"):
            text_inside.read_text(tmp_path / name)
    image.save(tmp_path / "apple.bmp")
    assert Image.open(tmp_path / "apple.bmp").size == (64, 64)


def test_jpeg_without_room_for_the_settings_is_saved_without_them(tmp_path):
    image = made.with_settings(Image.new("RGB", (8, 8)), "x" * 40_000)
    with pytest.warns(UserWarning, match="a JPEG file has no room for settings of 40000 characters"):
        image.save(tmp_path / "a.jpg")
    image.save(tmp_path / "a.webp")
    assert text_inside.read_text(tmp_path / "a.webp") == "x" * 40_000 and Image.open(tmp_path / "a.jpg").size == (8, 8)


def test_a_list_of_prompts_gives_a_list_of_pictures_whose_seeds_count_on(pipeline):
    both = pipeline.generate(["a cat", "a dog"], **FAST)
    alone, = pipeline.generate("a dog", **FAST | {"seed": 4})
    assert [image.info["seed"] for image in both] == [3, 4] and np.array_equal(np.asarray(both[1]), np.asarray(alone))
    assert "a dog" in both[1].info["parameters"] and "Seed: 4" in both[1].info["parameters"]


def test_each_picture_of_a_batch_says_its_own_seed(pipeline):
    texts = [image.info["parameters"] for image in pipeline.generate(PROMPT, count=2, **FAST)]
    assert ["Seed: 3," in texts[0], "Seed: 4," in texts[1]] == [True, True]


def test_help_and_completion_see_every_setting_with_its_type():
    parameters = inspect.signature(npdiffusion.load().generate).parameters
    assert {*SETTINGS} <= {*parameters} and parameters["steps"].annotation in ("int | None", int | None)
    assert parameters["rng"].default == "torch"
    assert {"latents", "prompt_embeds", "negative_prompt_embeds", "generator", "output_type"} <= {*parameters}


def test_a_pipeline_says_what_it_is(pipeline):
    assert repr(pipeline) == "<StableDiffusionPipeline: embedded, Stable Diffusion v1, pictures of 128×128 pixels>"


def test_a_pipeline_and_its_parts_say_what_they_are(pipeline):
    assert repr(pipeline.unet).startswith("<UNet2DConditionModel: 10.9 million parameters, UNetConfig(in_channels=4, ")
    assert repr(pipeline.vae).startswith("<AutoencoderKL: 3.4 million parameters, VAEConfig(")
    assert repr(pipeline.text_encoder).startswith("<CLIPTextModel: 1.6 million parameters, CLIPTextConfig(vocab_size=")
    assert repr(AutoencoderTiny(TinyVAEConfig())).startswith("<AutoencoderTiny: 2.4 million parameters, TinyVAEConfig(")
    assert repr(pipeline.tokenizer) == f"<CLIPTokenizer: {len(pipeline.tokenizer.vocabulary)} pieces, texts of 77 ids>"


def test_notebooks_show_the_picture_or_a_sheet_of_several(pipeline):
    one, two = (pipeline.generate(PROMPT, count=count, **FAST) for count in (1, 2))
    assert isinstance(two, list) and len(two) == 2
    shown = [Image.open(io.BytesIO(images._repr_png_())) for images in (one, two)]
    assert np.array_equal(np.asarray(shown[0]), np.asarray(one[0])) and shown[1].width > 2 * 64


def test_the_error_that_users_see_is_exported_and_a_value_error(pipeline):
    assert npdiffusion.UserError is UserError
    with pytest.raises(ValueError, match="steps is 0: it must be a whole number from 1 to 1000"):
        pipeline.generate(PROMPT, steps=0)


@pytest.mark.parametrize("settings", [
    dict(steps=0), dict(init_image="a.png", hires=2), dict(sampler="ddim", schedule="karras"), dict(width=7)])
def test_what_is_refused_in_another_process_is_refused_here_with_the_same_words(settings, pipeline):
    with pytest.raises(UserError) as refused:
        pipeline.generate(PROMPT, **settings)
    found = pickle.loads(pickle.dumps(refused.value))          # as a pool does; it waits for ever for one that can't be read
    assert isinstance(found, UserError) and str(found) == str(refused.value)


def test_a_picture_made_in_a_callback_of_another_leaves_that_one_as_it_is(tmp_path):
    pipeline = npdiffusion.load(lora_dir=tmp_path)
    name = "down_blocks.0.resnets.0.time_emb_proj"
    outputs, inputs = pipeline.adapters.parts["unet"].shapes[f"{name}.weight"]
    random = np.random.default_rng(0)
    flat = "lora_unet_" + name.replace(".", "_")
    save_file({f"{flat}.lora_down.weight": random.standard_normal((4, inputs), np.float32),
               f"{flat}.lora_up.weight": random.standard_normal((outputs, 4), np.float32)}, tmp_path / "l.safetensors")
    settings = FAST | {"steps": 3}
    expected, = pipeline.generate(PROMPT, **settings)
    other, = pipeline.generate("a dog <lora:l>", **settings)
    made = []

    def inside(step, steps, latents):
        if step == 2:
            made.extend(pipeline.generate("a dog <lora:l>", **settings))
    found, = pipeline.generate(PROMPT, callback=inside, **settings)
    assert np.array_equal(np.asarray(found), np.asarray(expected)) and "Lora" not in found.info["parameters"]
    assert np.array_equal(np.asarray(made[0]), np.asarray(other)) and "Lora hashes" in made[0].info["parameters"]
    with pytest.raises(UserError, match="it can't be closed now"):
        pipeline.generate(PROMPT, callback=lambda *step: pipeline.close(), **FAST)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes don't fork here")
def test_a_fork_while_another_thread_makes_a_picture_blocks_no_child():
    output = output_of("""
import multiprocessing, threading
import npdiffusion
npdiffusion.use_backend("numpy")
pipeline = npdiffusion.load()
within, end = threading.Event(), threading.Event()
def wait(*step):
    within.set()
    end.wait()
thread = threading.Thread(target=lambda: pipeline.generate("a cat", steps=1, width=64, height=64, callback=wait))
thread.start()
within.wait()
def size(seed):
    return pipeline.generate("a cat", steps=1, seed=seed, width=64, height=64)[0].size
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.map_async(size, [1]).get(timeout=100))
end.set()
thread.join()
""")
    assert output == "[(64, 64)]\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes don't fork here")
def test_a_pool_of_forked_processes_makes_pictures_or_says_what_to_do_and_never_waits():
    output = output_of("""
import multiprocessing
import npdiffusion
pipeline = npdiffusion.load()
def picture(seed):
    return pipeline.generate("a cat", steps=1, seed=seed, width=64, height=64)[0]
picture(0)
with multiprocessing.get_context("fork").Pool(2) as pool:
    try:
        print([made.info["seed"] for made in pool.map_async(picture, [1, 2, 3]).get(timeout=200)])
    except RuntimeError as error:
        print(error)
print(picture(4).size)
""")
    answer, after = output.splitlines()
    assert after == "(64, 64)"
    assert answer == "[1, 2, 3]" or "start processes with multiprocessing.get_context('spawn')" in answer


def test_a_closed_pipeline_says_so():
    with npdiffusion.load() as closed:
        unet = weakref.ref(closed.unet)
    assert unet() is None and repr(closed) == "<StableDiffusionPipeline: embedded, closed>"
    closed.close()
    with pytest.raises(UserError, match="this pipeline was closed: load the model anew"):
        closed.generate(PROMPT)


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of this process is read from /proc")
@pytest.mark.parametrize("end", ["pipeline.close()", "del pipeline"])
def test_the_memory_of_a_pipeline_that_is_closed_or_deleted_goes_back_to_the_system(end):
    before, loaded, after = map(float, output_of(f"""
import npdiffusion
def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6
for _ in range(3):
    before = megabytes()
    pipeline = npdiffusion.load()
    pipeline.generate("a cat", steps=1, width=64, height=64)
    loaded = megabytes()
    {end}
print(before, loaded, megabytes())
""").split())
    assert loaded - before > 50 and after - before < 15          # the weights are 64 MB


def test_nothing_is_written_to_a_stream_that_is_no_terminal(pipeline, capsys):
    pipeline.generate(PROMPT, **FAST)
    assert capsys.readouterr().err == ""
