"""GGUF: blocks are decoded as by the package gguf, whole models load, and a table that lies is refused in one line."""
import random
import struct
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

from npdiffusion.checkpoints import gguf_file, library
from npdiffusion.checkpoints.files import read_tensors
from npdiffusion.checkpoints.quantized import DECODED
from npdiffusion.errors import UserError
from npdiffusion.models import parameters
from npdiffusion.models.layers import Conv2d, Linear
from tests import folders, gguf_files
from tests.differences import agree
from tests.errors import message_of
from tests.gguf_files import I32, plain, q8_0, text
from tests.loaded import load_parts
from tests.single_files import original

BLOCKS = [name for name in DECODED if name.startswith("Q")]
ORIG_SHAPE = "comfy.gguf.orig_shape."


def write(path, *arguments, **options):
    path.write_bytes(gguf_files.gguf(*arguments, **options))
    return path


# --- numbers ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_any_bits_are_decoded_as_by_gguf(name, tmp_path):
    gguf = pytest.importorskip("gguf")
    kind, number = DECODED[name], gguf.GGMLQuantizationType[name]
    blocks = np.random.default_rng(0).integers(0, 256, (6, 40 * kind.size), np.uint8)       # NaN and infinity among them
    path = write(tmp_path / "x.gguf", {"w": (number, (6, 40 * kind.values), blocks.tobytes())})
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, number)
    found = read_tensors(path)["w"]
    assert found.dtype == name and found.shape == expected.shape
    agree("GGUF", f"{name}, random bits", np.nan_to_num(found()), np.nan_to_num(expected), 0)
    assert np.array_equal(found(), expected, equal_nan=True)
    assert np.array_equal(found.rows(2, 5)(), expected[2:5], equal_nan=True)


def test_a_file_that_gguf_writes_is_read_with_its_settings_passed_over(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "sd1")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ß"])
    writer.add_array("some.numbers", [1.5, 2.5])
    for number, add in enumerate((writer.add_uint8, writer.add_int16, writer.add_uint64, writer.add_float64)):
        add(f"number.{number}", 7)
    writer.add_bool("a.bool", True)
    writer.add_custom_alignment(64)
    arrays = {"a": np.arange(180, dtype=np.float32).reshape(5, 4, 3, 3), "b": np.arange(7, dtype=np.float16),
              "c": np.arange(12, dtype=np.float64).reshape(3, 4)}
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_tensors(tmp_path / "x.gguf")
    assert {name: tensor.shape for name, tensor in found.items()} == {name: array.shape for name, array in arrays.items()}
    assert all(np.array_equal(found[name](), array) for name, array in arrays.items())


# --- models ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def arrays(models):
    """A whole model in original names, NumPy arrays."""
    return {name: tensor.numpy() for name, tensor in original(models).items()}


def quantized(arrays):
    """As stable-diffusion.cpp does it: whatever has rows of whole blocks, norms too, but for biases and embeddings."""
    def chosen(name, array):
        return (array.ndim and array.shape[-1] % 32 == 0 and not name.endswith(".bias")
                and not any(word in name for word in ("time_embed.", "embedding")))
    return {name: q8_0(array) if chosen(name, array) else plain(array.astype(np.float16 if array.ndim == 4 else np.float32))
            for name, array in arrays.items()}


@pytest.mark.usefixtures("on_numpy")
def test_a_model_of_stable_diffusion_cpp_is_the_one_of_its_rounded_weights(arrays, tmp_path):
    path = write(tmp_path / "model.gguf", quantized(arrays))
    folders.write_tokenizer(tmp_path / "tokenizer")
    found = read_tensors(path)
    kinds = {tensor.dtype for tensor in found.values()}
    assert kinds == {"F32", "F16", "Q8_0"} and found["model.diffusion_model.out.0.weight"].dtype == "Q8_0"
    save_file({name: tensor() for name, tensor in found.items()}, tmp_path / "twin.safetensors")
    expected = folders.our_results(load_parts(tmp_path / "twin.safetensors"))
    for name, result in folders.our_results(load_parts(path)).items():
        assert np.array_equal(result, expected[name])
    save_file(arrays, tmp_path / "exact.safetensors")
    exact = folders.our_results(load_parts(tmp_path / "exact.safetensors"))["unet"]
    assert 0 < np.abs(expected["unet"] - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.usefixtures("on_numpy")
def test_a_whole_model_in_gguf_is_listed_and_loaded_by_name(arrays, tmp_path):
    write(tmp_path / "small.gguf", quantized(arrays))
    folders.write_tokenizer(tmp_path / "tokenizer")
    entry = next(entry for entry in library.entries(tmp_path) if entry.name == "small.gguf")
    assert entry.usable and "Q8_0" in entry.precision and 0 < entry.size < (tmp_path / "small.gguf").stat().st_size
    assert set(load_parts("small.gguf", model_dir=tmp_path)) > {"unet"}


def test_reshaped_convolutions_of_comfyui_get_their_shape_back(tmp_path):
    weight = np.random.default_rng(0).standard_normal((32, 16, 3, 3)).astype(np.float32)
    path = write(tmp_path / "x.gguf", {"input_blocks.1.0.weight": q8_0(weight.reshape(-1, 256)), "b": plain(weight)},
                 [("general.architecture", 8, text("sd1")),
                  (f"{ORIG_SHAPE}input_blocks.1.0.weight", 9, struct.pack("<IQ4i", 5, 4, *weight.shape))])
    found = read_tensors(path)["input_blocks.1.0.weight"]
    assert found.shape == weight.shape and np.abs(found() - weight).max() < np.abs(weight).max() / 127
    assert "no parts of its rows" in message_of(found.rows, 0, 4)


def test_loading_a_quantised_model_takes_no_more_memory_than_its_float16_form(tmp_path):
    """Layers of the sizes and in the proportions of a UNet's: the largest are read first, when little else is there."""
    class Net:
        def __init__(self):
            self.layers = [Conv2d(320, 320), *(Linear(320, 1280) for _ in range(4)), *(Linear(320, 320) for _ in range(16))]
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float16) for name, shape in parameters.shapes(Net()).items()}
    forms = {"float16": {name: plain(array) for name, array in arrays.items()},
             "Q8_0": {name: q8_0(array.reshape(-1, 320)) if array.ndim > 1 else plain(array) for name, array in arrays.items()}}
    settings = [(f"{ORIG_SHAPE}{name}", 9, struct.pack(f"<IQ{array.ndim}i", 5, array.ndim, *array.shape))
                for name, array in arrays.items()]
    peaks = {}
    for form, tensors in forms.items():
        found = read_tensors(write(tmp_path / f"{form}.gguf", tensors, settings))
        net = Net()
        tracemalloc.start()
        parameters.load(net, found, form)
        peaks[form] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks["Q8_0"] <= peaks["float16"]


# --- tables that lie -------------------------------------------------------------------------------------------------

def small(**options):
    return bytearray(gguf_files.gguf({"a": plain(np.ones((3, 32), np.float32)), "b": q8_0(np.ones((2, 32)))}, **options))


HUGE = struct.pack("<Q", 1 << 60)
NAME = 24                                                     # where the first tensor's entry begins: u64 length, "a"


@pytest.mark.parametrize("at, bytes_, said", [
    (0, b"GGML", "not a safetensors file"), (4, struct.pack("<I", 1), "its version is 1"),
    (4, struct.pack(">I", 3), "its version is 50331648"),
    (8, HUGE, "1152921504606846976 tensors"), (16, HUGE, "1152921504606846976 settings"),
    (8, struct.pack("<Q", 3), "'' begins before"), (NAME, HUGE, "goes beyond its end"),
    (NAME + 8, b"\xff", "not UTF-8"), (NAME + 8, b"b", "'b' is there twice"),
    (NAME + 9, struct.pack("<I", 9), "'a' has 9 axes"), (NAME + 13, HUGE, "goes beyond its end"),
    (NAME + 33, struct.pack("<Q", 1 << 40), "'a' goes beyond its end"),
    (NAME + 33, struct.pack("<Q", 64), "begins before the tensor before it ends"),
    (NAME + 29, struct.pack("<I", 12), "has rows of 32 numbers in blocks of 256")])
def test_a_table_that_lies_is_refused_in_one_line(at, bytes_, said, tmp_path):
    content = small()
    content[at:at + len(bytes_)] = bytes_
    (tmp_path / "x.gguf").write_bytes(content)
    assert said in message_of(read_tensors, tmp_path / "x.gguf")


@pytest.mark.parametrize("setting, said", [
    (("general.alignment", 4, struct.pack("<I", 0)), "its alignment is no whole number"),
    (("general.alignment", 8, text("32")), "its alignment is no whole number"),
    (("x", 13, b""), "'x' is of type 13"), (("x", 9, struct.pack("<IQ", 9, 1)), "'x' is of type 9"),
    (("x", 9, struct.pack("<IQ", 8, 1 << 60)), "goes beyond its end"),
    (("x", 9, struct.pack("<IQ", 4, 1 << 61)), "beyond its end"),
    ((f"{ORIG_SHAPE}a", 9, struct.pack("<IQ2i", 5, 2, 5, 7)), "'a' has 96 numbers, but its own shape is (5, 7)"),
    ((f"{ORIG_SHAPE}a", 9, struct.pack("<IQ2i", 5, 2, -3, -32)), "its own shape is (-3, -32)"),
    ((f"{ORIG_SHAPE}a", 9, struct.pack("<IQ", 5, 1 << 60)), "no list of up to 8 lengths"),
    ((f"{ORIG_SHAPE}a", 4, struct.pack("<I", 5)), "no list of up to 8 lengths")])
def test_settings_that_lie_are_refused_in_one_line(setting, said, tmp_path):
    (tmp_path / "x.gguf").write_bytes(small(settings=[setting]))
    assert said in message_of(read_tensors, tmp_path / "x.gguf")


def test_a_kind_of_numbers_that_is_not_known_is_named_when_it_is_needed(tmp_path):
    path = write(tmp_path / "x.gguf", {"w": (20, (1, 32), bytes(18)), "i": (I32, (2,), bytes(8))})
    assert "'w' is of type GGUF 20" in message_of(read_tensors(path)["w"]) and read_tensors(path)["i"].dtype == "I32"


def test_a_file_cut_short_at_any_byte_is_refused_in_one_line(tmp_path):
    content = small()
    for length in range(4, len(content)):
        (tmp_path / "x.gguf").write_bytes(content[:length])
        assert "\n" not in message_of(read_tensors, tmp_path / "x.gguf")


def test_a_table_changed_at_random_is_read_or_refused_in_one_line_and_little_memory(tmp_path):
    """300 here; more, and of whole models, by `python -m tests.fuzz`."""
    content = small(settings=[("general.alignment", 4, struct.pack("<I", 32)), ("x", 9, struct.pack("<IQ", 8, 1) + text("y")),
                              (f"{ORIG_SHAPE}a", 9, struct.pack("<IQ2i", 5, 2, 96, 1))])
    assert read_tensors(write(tmp_path / "w.gguf", {"a": plain(np.ones((3, 32), np.float32))}))["a"]().sum() == 96
    chance, refused = random.Random(0), []
    tracemalloc.start()
    for _ in range(300):
        changed = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(4, 280)] = chance.choice((0, 1, 255, chance.randrange(256)))
        (tmp_path / "x.gguf").write_bytes(changed)
        try:
            for tensor in read_tensors(tmp_path / "x.gguf").values():
                if tensor.dtype in gguf_file.KINDS:
                    tensor()
        except UserError as error:
            refused.append(str(error))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 100 < len(refused) < 300 and peak < 4 << 20
    assert all("\n" not in said and len(said) < 700 for said in refused)
