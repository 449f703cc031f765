"""Folders of pictures with captions: sizes, batches of one size, and mistakes."""
import numpy as np
import pytest
from PIL import Image

from npdiffusion.training.picture_folder import batches, bucket, read_examples
from tests.errors import message_of


@pytest.fixture
def folder(tmp_path):
    for name, size in (("b", (64, 64)), ("a", (100, 50)), ("c", (30, 90))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f" a picture\n called {name} \n")
    return tmp_path


def test_pictures_come_in_the_order_of_names_with_their_captions(folder):
    found = read_examples(folder, 64, 8)
    assert [(each.name, each.caption) for each in found] == [(f"{name}.png", f"a picture called {name}") for name in "abc"]
    assert [each.pixels.shape for each in found] == [(48, 88, 3), (64, 64, 3), (88, 48, 3)]
    assert found[0].pixels[0, 0] == pytest.approx([1, -1, -1]) and found[0].pixels.dtype == np.float32
    assert [each.caption for each in read_examples(folder, 64, 8, prompt="sks")] == ["sks"] * 3


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 3), (16, 9), (1, 50), (50, 1)])
@pytest.mark.parametrize(("size", "step"), [(512, 64), (128, 16), (64, 8)])
def test_buckets_have_about_the_area_and_the_shape_within_a_step(shape, size, step):
    width, height = bucket(shape[0] * 100, shape[1] * 100, size, step)
    assert width % step == height % step == 0
    assert width * height == pytest.approx(size * size, rel=0.2)
    wanted = min(max(shape[0] / shape[1], 0.5), 2)
    assert abs(width - size * wanted ** 0.5) <= step / 2 and abs(height - size / wanted ** 0.5) <= step / 2


def test_batches_are_of_one_size_and_an_epoch_has_every_picture_once():
    sizes = ["wide"] * 5 + ["tall"] * 3 + ["square"]
    for epoch in range(3):
        found = batches(sizes, 2, seed=1, epoch=epoch)
        assert sorted(np.concatenate(found)) == list(range(9)) and len(found) == 3 + 2 + 1
        assert all(len({sizes[i] for i in batch}) == 1 for batch in found)
    assert [*map(list, batches(sizes, 2, 1, 0))] != [*map(list, batches(sizes, 2, 1, 1))]


def test_a_picture_that_can_not_be_read_is_left_out_and_named_or_stops(folder):
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:60])
    with pytest.warns(UserWarning, match=r"b\.png: .*left out"):
        assert [each.name for each in read_examples(folder, 64, 8)] == ["a.png", "c.png"]
    assert "b.png" in message_of(read_examples, folder, 64, 8, strict=True)


def test_few_pixels_are_named(folder):
    with pytest.warns(UserWarning, match="pixels are few"):
        read_examples(folder, 512, 64)


@pytest.mark.parametrize(("change", "said"), [
    (lambda folder: (folder / "a.txt").unlink(), "a.png: it has no caption"),
    (lambda folder: (folder / "a.txt").write_text(" \n"), "a.txt: the caption is empty"),
    (lambda folder: (folder / "a.png").unlink(), "a.txt is a caption without a picture"),
    (lambda folder: [path.unlink() for path in folder.glob("*.png")], "no pictures in it, only captions"),
    (lambda folder: [path.unlink() for path in folder.iterdir()], "no pictures in it"),
    (lambda folder: [path.write_bytes(b"GIF89a") for path in folder.glob("*.png")], "none of its 3 pictures"),
    (lambda folder: [path.unlink() for path in folder.iterdir()] + [folder.rmdir()], "a folder of pictures was expected")])
@pytest.mark.filterwarnings("ignore")
def test_folders_that_can_not_be_used_are_named(folder, change, said):
    change(folder)
    text = message_of(read_examples, folder, 64, 8)
    assert said in text and str(folder) in text
