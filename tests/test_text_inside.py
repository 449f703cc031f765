"""The text inside PNG, JPEG and WebP files, written by Pillow and byte by byte."""
import io
import os
import struct
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from npdiffusion.errors import UserError
from npdiffusion.pictures import text_inside
from npdiffusion.pictures.images import save_png
from npdiffusion.pictures.text_inside import LONGEST_TEXT, png_info, read_text


def picture(folder, *chunks, after=()):
    """A PNG file with chunks (type, data) before and after its pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    start = buffer.getvalue()
    head, pixels, end = start[:33], start[33:-12], start[-12:]
    path = folder / "a.png"
    path.write_bytes(head + b"".join(chunk(*c) for c in chunks) + pixels + b"".join(chunk(*c) for c in after) + end)
    return path


def chunk(kind, data, check=None):
    check = zlib.crc32(kind + data) if check is None else check
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


@pytest.mark.parametrize("text", ["a red apple", "größe", "りんご 🍎", "two\nlines"])
def test_the_text_comes_back_from_the_file(text, tmp_path):
    path = save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", png_info(text))
    with Image.open(path) as image:
        assert image.text == {"parameters": text}
    assert read_text(path) == text


def test_names_of_files_in_another_encoding_are_no_obstacle(tmp_path):
    text = "Model: " + b"mod\xe8le".decode("utf-8", "surrogateescape")
    path = save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", png_info(text))
    assert read_text(path) == "Model: mod?le"


@pytest.mark.parametrize("kind", ["compressed Latin-1", "UTF-8", "compressed UTF-8", "in another language"])
def test_every_kind_of_text_that_pillow_writes_is_read(kind, tmp_path):
    info = PngInfo()
    info.add_text("Software", "something else")
    if kind == "compressed Latin-1":
        info.add_text("parameters", "größe", zip=True)
    else:
        info.add_itxt("parameters", "größe", "de", "Einstellungen" if "language" in kind else "",
                      zip="compressed" in kind)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    assert read_text(tmp_path / "a.png") == "größe"


def test_a_text_after_the_pixels_is_found(tmp_path):
    assert read_text(picture(tmp_path, after=[(b"tEXt", b"parameters\0late")])) == "late"


def test_utf_8_of_stable_diffusion_cpp_is_read_although_the_format_says_latin_1(tmp_path):
    text = "größe\nSteps: 1, Version: stable-diffusion.cpp"
    assert read_text(picture(tmp_path, (b"tEXt", b"parameters\0" + text.encode()))) == text


@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_the_comment_of_jpeg_and_webp_is_read(kind, order, tmp_path):
    exif = Image.Exif()
    exif.get_ifd(text_inside.EXIF_TABLE)[text_inside.USER_COMMENT] = b"UNICODE\0" + "größe 🍎\nSteps: 1".encode(order)
    Image.new("RGB", (8, 8)).save(tmp_path / "a", kind, exif=exif)
    assert read_text(tmp_path / "a") == "größe 🍎\nSteps: 1"


BOMB = zlib.compress(b"a" * (LONGEST_TEXT + 1))


@pytest.mark.parametrize(("chunks", "message"), [
    ([], r"there are no settings inside \(a PNG text named parameters, or an EXIF comment\)"),
    ([(b"tEXt", b"parameters\0")], "there are no settings inside"),
    ([(b"tEXt", b"Parameters\0a")], "there are no settings inside"),
    ([(b"zTXt", b"parameters\0\0" + BOMB)], "inside are damaged .inflated it has more than"),
    ([(b"iTXt", b"parameters\0\1\0\0\0" + BOMB)], "inside are damaged .inflated it has more than"),
    ([(b"tEXt", b"parameters\0" + b"a" * LONGEST_TEXT)], "inside are damaged .it has 1048587 bytes, at most"),
    ([(b"zTXt", b"parameters\0\0" + zlib.compress(b"abc")[:-4])], "inside are damaged .cut short"),
    ([(b"zTXt", b"parameters\0\0xyz")], "inside are damaged .Error -3"),
    ([(b"zTXt", b"parameters\0")], "inside are damaged .cut short"),
    ([(b"iTXt", b"parameters\0\0\0\0\0\xff\xfe")], "inside are damaged .*utf-8"),
    ([(b"tEXt", b"parameters\0a", 5)], "inside are damaged .cut short or changed"),
], ids=range(11))
def test_a_broken_text_is_one_clear_line(chunks, message, tmp_path):
    with pytest.raises(UserError, match=f"a.png: .*{message}") as caught:
        read_text(picture(tmp_path, *chunks))
    assert "\n" not in str(caught.value)


def test_a_long_text_of_something_else_is_passed_over(tmp_path):
    path = picture(tmp_path, (b"tEXt", b"workflow\0" + b"a" * LONGEST_TEXT), (b"tEXt", b"parameters\0here"))
    assert read_text(path) == "here"


def test_a_file_that_is_cut_anywhere_gives_the_text_or_one_line(tmp_path):
    whole = picture(tmp_path, (b"tEXt", b"parameters\0abc")).read_bytes()
    end = whole.index(b"abc") + 7     # its check sum included
    for length in range(len(whole)):
        (tmp_path / "cut.png").write_bytes(whole[:length])
        if length >= end:
            assert read_text(tmp_path / "cut.png") == "abc"
        else:
            with pytest.raises(UserError, match="cut.png: "):
                read_text(tmp_path / "cut.png")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xe1\xff\xff" + b"Exif\0\0" + b"x" * 99])
def test_a_file_that_is_no_picture_is_one_clear_line(content, tmp_path):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UserError, match="a.jpg: "):
        read_text(tmp_path / "a.jpg")


def test_a_folder_or_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in tmp_path, tmp_path / "pipe":
        with pytest.raises(UserError, match="not a file"):
            read_text(path)


@pytest.mark.parametrize("name, where", [("a.png", "second"), ("a.png", "first"), ("a.jpg", "first"), ("a.png", "description"),
                                         ("a.webp", "description")])
def test_a_comment_in_any_exif_table_of_any_picture_is_read(name, where, tmp_path):
    text, exif = "a cat\nSteps: 3, Seed: 7, Size: 64x64", Image.Exif()
    exif[0x0131] = "a program"
    if where == "description":
        exif[0x010E] = text
    else:
        (exif.get_ifd(0x8769) if where == "second" else exif)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
    Image.new("RGB", (8, 8)).save(tmp_path / name, exif=exif)
    assert read_text(tmp_path / name) == text


def test_exif_that_a_converter_kept_as_a_text_of_a_png_is_read(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0a cat"
    info, data = PngInfo(), exif.tobytes()
    info.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n", zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    assert read_text(tmp_path / "a.png") == "a cat"


def test_the_comment_of_a_gif_is_read(tmp_path):
    Image.new("P", (8, 8)).save(tmp_path / "a.gif", comment=b"a cat\nSteps: 3")
    assert read_text(tmp_path / "a.gif") == "a cat\nSteps: 3"
