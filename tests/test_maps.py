"""Maps for ControlNets: edges beside OpenCV's, what each keeps of a picture, which texts name one."""
import numpy as np
import pytest
from PIL import Image, ImageDraw

from npdiffusion.errors import UserError
from npdiffusion.pictures import maps
from npdiffusion.settings import MAPS, Request
from tests.differences import agree


def noisy(seed, height=40, width=56, smooth=False):
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))
    return maps.make("blur:2", image).point(lambda level: (3 * level) % 256) if smooth else image


def grey(image):
    """(H, W) levels of a map whose three channels are equal"""
    levels = np.asarray(image).astype(int)
    assert (levels == levels[..., :1]).all()
    return levels[..., 0]


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("numbers", ["100-200", "30-90", "200-900"])
def test_canny_gives_the_edges_of_opencv(smooth, numbers):
    """Which ControlNet's own annotator calls, with 100 and 200"""
    cv2 = pytest.importorskip("cv2")
    for seed, size in enumerate([(40, 56), (1, 9), (2, 2), (33, 7)]):
        image = noisy(seed, *size, smooth)
        expected = cv2.Canny(np.asarray(image), *map(int, numbers.split("-")))
        agree("maps", "canny, levels", grey(maps.make(f"canny:{numbers}", image)), expected.astype(int), 0)


def test_a_square_has_one_closed_line_of_edges():
    image = Image.new("RGB", (40, 40), "white")
    ImageDraw.Draw(image).rectangle((10, 10, 29, 29), fill="black")
    edges = grey(maps.make("canny", image))
    assert {*np.unique(edges)} == {0, 255} and edges[12:28, 12:28].max() == 0 and edges[:8].max() == 0
    assert all(edges[20, column] or edges[20, column + 1] for column in (9, 29))


def test_a_weak_edge_counts_where_it_leads_on_from_a_strong_one():
    image = np.full((20, 40, 3), 100, np.uint8)
    image[10:, :20] = 160                    # Sobel's differences are four times as large
    image[10:, 20:] = 130
    alone = image.copy()
    alone[10:, :20] = 130
    edges, weak = (grey(maps.make("canny:100-200", Image.fromarray(each))) for each in (image, alone))
    assert edges[8:12, 30].max() == 255 and weak.max() == 0


def test_a_scribble_is_white_where_the_picture_is_darker_than_around():
    image = Image.new("RGB", (60, 40), "white")
    ImageDraw.Draw(image).line((10, 20, 50, 20), fill="black", width=3)
    lines = grey(maps.make("scribble", image))
    assert lines[20, 15:45].min() == 255 and lines[:5].max() == 0 and lines[35:].max() == 0


def test_tile_and_blur_keep_the_mean_and_lose_details():
    image = noisy(1, 64, 64)
    before = np.asarray(image).astype(float)
    for name in "tile:4", "blur:3":
        after = np.asarray(maps.make(name, image)).astype(float)
        assert after.shape == before.shape and after.std() < before.std() / 2 and abs(after.mean() - before.mean()) < 3
    assert maps.make("tile", image) is image and maps.make("none", image) is image
    assert np.array_equal(np.asarray(maps.make("invert", image)), 255 - np.asarray(image))


def test_every_map_of_the_table_is_made():
    assert {*maps.MADE_BY} | {"none"} == {*MAPS}
    for name in MAPS:
        assert maps.make(name, noisy(0)).size == (56, 40)


@pytest.mark.parametrize("text, message", [
    ("depth", "depth is found by a network"), ("cany", "did you mean canny"), ("invert:1", "invert takes 0 numbers"),
    ("canny:5000", "canny, low threshold: 5000 is out of range"), ("canny:1-2-3", "canny takes 2 numbers"),
    ("blur:x", "blur, pixels: 'x' is no whole number"), (3, "control_from is 3: known are")])
def test_what_names_no_map_is_told(text, message):
    with pytest.raises(UserError, match=message):
        Request("a cat", control_from=text)
