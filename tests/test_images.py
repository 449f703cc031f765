"""Pictures: read whatever people have, write so that nothing is lost, and the numbers in between equal diffusers'."""
import os
import stat
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from npdiffusion.errors import UserError
from npdiffusion.pictures.images import check_folder, free_name, open_image, save_picture, save_png, to_array, to_images


def random_picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def test_array_of_a_picture_equals_diffusers():
    processor = pytest.importorskip("diffusers.image_processor").VaeImageProcessor()
    picture = random_picture(24, 16)
    expected = processor.preprocess(picture)[0].numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(to_array(picture, 24, 16), expected)


def test_array_of_a_picture_with_the_same_aspect_is_resized_as_diffusers_does():
    processor = pytest.importorskip("diffusers.image_processor").VaeImageProcessor()
    picture = random_picture(48, 32)
    expected = processor.preprocess(picture, height=16, width=24)[0].numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(to_array(picture, 24, 16), expected)


def test_pictures_of_an_array_equal_diffusers():
    torch = pytest.importorskip("torch")
    processor = pytest.importorskip("diffusers.image_processor").VaeImageProcessor()
    array = np.random.default_rng(0).uniform(-1.5, 1.5, (2, 32, 24, 3)).astype(np.float32)
    expected = processor.postprocess(torch.from_numpy(array.transpose(0, 3, 1, 2)), output_type="pil")
    for ours, theirs in zip(to_images(array), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_every_level_survives_the_way_to_an_array_and_back():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    array = to_array(Image.fromarray(levels), 16, 16)
    assert array.dtype == np.float32 and array.min() == -1 and array.max() == 1
    np.testing.assert_array_equal(np.asarray(to_images(array[None])[0]), levels)


def test_an_array_with_nan_makes_no_picture():
    with pytest.raises(ValueError, match="NaN"):
        to_images(np.full((1, 8, 8, 3), np.nan, np.float32))


def test_a_wide_picture_is_cut_evenly_on_both_sides():
    picture = Image.new("RGB", (30, 10), "red")
    picture.paste("blue", (10, 0, 20, 10))
    array = to_array(picture, 10, 10)
    np.testing.assert_array_equal(array[:, 2:8], np.broadcast_to(np.float32([-1, -1, 1]), (10, 6, 3)))


@pytest.mark.parametrize("picture", [
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)),
    Image.new("LA", (8, 8), (0, 0)),
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).quantize(),
], ids=["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(picture, tmp_path):
    picture.save(tmp_path / "in.png")
    np.testing.assert_array_equal(to_array(tmp_path / "in.png", 8, 8), np.ones((8, 8, 3), np.float32))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGB", "RGBA"])
def test_every_usual_mode_becomes_rgb(mode):
    assert to_array(Image.new("RGB", (8, 8), "white").convert(mode), 8, 8) == pytest.approx(1)


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    Image.fromarray(np.full((8, 8), 32896, np.uint16)).save(tmp_path / "in.png")
    assert open_image(tmp_path / "in.png").getpixel((0, 0)) == (128, 128, 128)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6                                     # the camera was held upright
    random_picture(16, 8).save(tmp_path / "in.jpg", exif=exif)
    assert open_image(tmp_path / "in.jpg").size == (8, 16)


def png_of_size(width, height):
    """The beginning of a PNG that claims a size."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10)))


@pytest.mark.parametrize(("content", "message"), [
    (b"", "not a picture"),
    (b"GIF", "not a picture"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not a picture"),
    (png_of_size(9000, 9000), "9000x9000 is too large, at most 64 million pixels"),
    (png_of_size(60000, 60000), "too large, at most 64 million pixels"),
    (png_of_size(8, 8), "can't be read"),
], ids=["empty", "text", "eps", "large", "bomb", "cut off"])
def test_an_unusable_file_is_named_with_its_fault(content, message, tmp_path):
    path = tmp_path / "in.png"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        open_image(path)
    assert message in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_files_cut_off_anywhere_never_raise_anything_else(name, tmp_path):
    path = tmp_path / "in"
    random_picture(40, 30).save(path, format=name)
    content, messages = path.read_bytes(), []
    for length in range(0, len(content), max(1, len(content) // 40)):
        path.write_bytes(content[:length])
        try:
            assert open_image(path).size == (40, 30)     # what is missing may be padding
        except UserError as error:
            messages.append(str(error))
    assert messages and all(str(path) in message for message in messages)


def test_a_missing_file_and_a_folder_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        open_image(tmp_path / "missing.png")
    with pytest.raises(UserError, match="not a file"):
        open_image(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a file"):
        open_image(tmp_path / "pipe")


def test_free_names_count_on_from_the_second(tmp_path):
    path = tmp_path / "a.b.png"
    assert free_name(path) == path
    path.touch()
    assert free_name(path) == tmp_path / "a.b-2.png"
    (tmp_path / "a.b-2.png").touch()
    assert free_name(path) == tmp_path / "a.b-3.png"


def test_saving_never_replaces_a_file(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("precious")
    assert save_png(random_picture(8, 8), path) == tmp_path / "a-2.png"
    assert path.read_text() == "precious"
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", "a-2.png"}


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_file_that_appears_while_saving_is_kept(links, tmp_path, monkeypatch):
    path, looked = tmp_path / "a.png", []

    def late(name, taken):
        """The name is free when looked at, and taken a moment later."""
        if not looked:
            looked.append(name)
            path.write_text("precious")
            return path
        return free_name(name)

    if not links:
        def refuse(source, target):
            raise PermissionError(1, "Operation not permitted")
        monkeypatch.setattr(os, "link", refuse)
    assert save_picture(b"x", path, free=late) == tmp_path / "a-2.png"
    assert path.read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a\.png: the picture can't be written \(No space left"):
        save_png(random_picture(8, 8), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_png(random_picture(8, 8), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="permissions as in POSIX")
def test_a_picture_gets_the_ordinary_permissions(tmp_path):
    (tmp_path / "plain").touch()
    path = save_png(random_picture(8, 8), tmp_path / "a.png")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_checking_a_folder_leaves_it_as_it_was(tmp_path):
    check_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_checking_a_folder_that_is_none_raises(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(UserError, match="no file can be written here"):
            check_folder(folder)


def test_an_array_is_a_picture_as_in_diffusers():
    from npdiffusion.pictures.images import rgb
    array = np.random.default_rng(0).integers(256, size=(6, 5, 3), dtype=np.uint8)
    for given in (array, array / 255, (array / 255).astype(np.float32)):
        assert np.array_equal(np.asarray(rgb(given)), array)


@pytest.mark.parametrize("given", [np.zeros((4, 4)), np.zeros((4, 4, 4)), np.full((4, 4, 3), 1.5), np.full((4, 4, 3), np.nan),
                                   np.zeros((4, 4, 3), np.int64), np.zeros((0, 4, 3), np.uint8), 7, ["a.png"]])
def test_an_array_of_another_kind_is_named(given):
    from npdiffusion.pictures.images import rgb
    with pytest.raises(UserError, match="^init_image is an? .*expected"):
        rgb(given)
