"""The recipe of the embedded model: its data, its vocabulary, and above all its judge.

Whoever judges must be judged first: real scenes have to pass, scenes that show something else have to fail. That is
tested with a few stand-in sprites, so that it needs no font, and with the font's own where it is installed.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from npdiffusion.weights.recipe import captions, exam, newcomer, recognition, scenes, scribbles, seeds, settings, subjects

STAND_INS = ("cat", "dog", "fox", "bear", "panda", "frog")


@pytest.fixture(scope="module")
def sprites():
    """Six shapes, pairwise different in outline or colour, named like subjects."""
    shapes = {}
    for i, name in enumerate(STAND_INS):
        shapes[name] = Image.new("RGBA", (100, 100) if i % 2 else (110, 70))
        pen, (w, h) = ImageDraw.Draw(shapes[name]), shapes[name].size
        colour = ((200, 30, 90), (20, 200, 200), (250, 120, 0), (120, 220, 20), (90, 60, 230), (230, 220, 190))[i]
        if i < 2:
            pen.ellipse((0, 0, w - 1, h - 1), fill=colour)
        elif i < 4:
            pen.polygon([(0, h - 1), (w // 2, 0), (w - 1, h - 1)], fill=colour)
        else:
            pen.rectangle((0, 0, w - 1, h - 1), fill=colour)
            pen.rectangle((w // 4, h // 4, w // 2, h // 2), fill=(30, 30, 30))
    return shapes


def drawn(scene, sprites, seed=5):
    return scenes.draw(scene, sprites, np.random.default_rng(seed))


# The judge -----------------------------------------------------------------------------------------------------

ONE_OF_EACH = [
    scenes.Scene(("cat",), "blue"), scenes.Scene(("dog",), "white", "small", "left"),
    scenes.Scene(("fox",), "black", "big"),
    scenes.Scene(("bear",), "gray", "", "bottom right"), scenes.Scene(("panda",), "pink", "small", "centre"),
    scenes.Scene(("frog", "cat"), "yellow"), scenes.Scene(("bear",), "purple", count=2),
    scenes.Scene(("fox",), "green", count=3), scenes.Scene(("cat",), "white", tint="blue"),
    *(scenes.Scene(("panda",), scenery) for scenery in scenes.SCENERY),
]


@pytest.mark.parametrize("scene", ONE_OF_EACH, ids=captions.caption)
def test_judge_passes_a_real_scene(scene, sprites):
    assert recognition.Judge(sprites).marks(scene, drawn(scene, sprites)) == {
        "subject": True, "ground": True, "size": True, "place": True}


@pytest.mark.parametrize("shown, asked, wrong", [
    (scenes.Scene(("cat",), "red"), scenes.Scene(("dog",), "red"), {"subject"}),
    (scenes.Scene(("cat",), "red"), scenes.Scene(("cat",), "pink"), {"ground"}),
    (scenes.Scene(("cat",), "night"), scenes.Scene(("cat",), "sunset"), {"ground"}),
    (scenes.Scene(("cat",), "red", "small"), scenes.Scene(("cat",), "red", "big"), {"size"}),
    (scenes.Scene(("cat",), "red", "", "left"), scenes.Scene(("cat",), "red", "", "right"), {"place"}),
    (scenes.Scene(("cat",), "red", "", "top left"), scenes.Scene(("cat",), "red", "", "left"), {"place"}),
    (scenes.Scene(("bear", "fox"), "white"), scenes.Scene(("bear", "dog"), "white"), {"subject"}),
    (scenes.Scene(("fox",), "white", count=3), scenes.Scene(("fox",), "white", count=2), {"subject"}),
    (scenes.Scene(("fox",), "white", tint="blue"), scenes.Scene(("fox",), "white", tint="green"), {"subject"}),
    (scenes.Scene(("fox",), "white"), scenes.Scene(("fox",), "white", tint="green"), {"subject"}),
], ids=lambda value: captions.caption(value) if isinstance(value, scenes.Scene) else None)
def test_judge_sees_what_is_wrong(shown, asked, wrong, sprites):
    marks = recognition.Judge(sprites).marks(asked, drawn(shown, sprites))
    assert {name for name, right in marks.items() if not right} == wrong


def test_what_a_caption_leaves_open_cannot_be_wrong_and_what_it_says_can(sprites):
    judge, shown = recognition.Judge(sprites), scenes.Scene(("fox",), "white", "small", "top left")
    picture = drawn(shown, sprites)
    for size, place, right in (("", "", (True, True)), ("", "centre", (True, False)), ("big", "", (False, True)),
                               ("", "top left", (True, True)), ("small", "top", (True, False))):
        marks = judge.marks(scenes.Scene(("fox",), "white", size, place), picture)
        assert (marks["size"], marks["place"]) == right


def test_judge_finds_no_second_subject_in_half_of_one(sprites):
    one, two = scenes.Scene(("cat",), "white", "big"), scenes.Scene(("cat",), "white", count=2)
    assert not recognition.Judge(sprites).marks(two, drawn(one, sprites))["subject"]


def test_judge_sees_no_subject_in_an_empty_picture(sprites):
    marks = recognition.Judge(sprites).marks(scenes.Scene(("cat",), "pink"), drawn(scenes.Scene((), "pink"), sprites))
    assert marks == {"subject": False, "ground": True, "size": False, "place": False}


def test_a_night_without_stars_is_not_right(sprites):
    picture = drawn(scenes.Scene(("cat",), "night"), sprites)
    picture = np.where(recognition.outline(picture.astype(float), recognition.ground_of(picture), True)[..., None], picture,
                       recognition.ground_of(picture).astype(np.uint8))
    assert not recognition.Judge(sprites).marks(scenes.Scene(("cat",), "night"), picture)["ground"]


def test_psnr_of_a_known_error_is_exact():
    a = np.zeros((2, 8, 8, 3), np.uint8)
    assert exam.psnr(a, a + 51) == pytest.approx(20 * np.log10(5))              # 255 / 51 = 5


def test_exam_asks_500_questions_about_what_training_never_shows():
    questions = exam.exam()
    assert len(questions) == 500 and [question.seed for question in questions] == list(range(500))
    kinds = {kind: [q.scene for q in questions if q.kind == kind] for kind in exam.QUESTIONS}
    for kind in ("subject", "words", "count", "scenery"):
        assert all(scenes.held_out(scene.subjects[0], scene.background) for scene in kinds[kind])
    assert all(scenes.held_out(*sorted(scene.subjects)) for scene in kinds["two"])
    assert all(scenes.held_out(scene.subjects[0], f"in {scene.tint}") for scene in kinds["tint"])
    assert all(any(scenes.held_out(*words) for words in scenes.combinations(q.scene)) for q in questions)


def test_a_part_of_the_exam_is_its_beginning():
    whole, part = exam.exam(), exam.exam(0.1)
    assert len(part) == 50 and set(part) < set(whole)


def test_figures_count_what_each_kind_of_question_is_about():
    questions = [exam.Question(kind, scenes.Scene(("cat",), "red"), "", 0) for kind in ("subject", "words", "words")]
    right = dict(subject=True, ground=True, size=True, place=True)
    figures = exam.figures_of(questions, [right | dict(subject=False), right | dict(place=False), right])
    assert figures == {"background": 100.0, "subject": 0.0, "words": 50.0, "subject, words": 100.0}


def test_judge_passes_the_fonts_own_scenes():
    if not Path(settings.FONT).exists():
        pytest.skip("needs the font of Debian's fonts-noto-color-emoji; the judge's logic is tested without it above")
    sprites = scenes.load_sprites()
    questions = exam.exam(0.05)
    marks = [recognition.Judge(sprites).marks(question.scene, drawn(question.scene, sprites)) for question in questions]
    assert np.mean([all(mark.values()) for mark in marks]) > 0.9


def test_the_judge_of_a_newcomer_tells_it_from_all_others(sprites, tmp_path):
    judge = recognition.Judge(sprites | {newcomer.NAME: newcomer.traffic_light()})
    asked = newcomer.scenes_on(newcomer.NEW)
    assert len(asked) == 10 and not set(newcomer.NEW) & set(newcomer.SEEN)
    assert newcomer.recognised(judge, asked, newcomer.drawn(asked, newcomer.traffic_light(), 11)) == [True] * 10
    others = [drawn(scenes.Scene((STAND_INS[i % 6],), scene.background), sprites, i) for i, scene in enumerate(asked)]
    assert newcomer.recognised(judge, asked, others) == [False] * 10
    newcomer.main(["draw", str(tmp_path / "pictures")])
    written = {path.name: path for path in (tmp_path / "pictures").iterdir()}
    assert len(written) == 12 and written["red.txt"].read_text().strip() == "a zog on a red background"
    assert Image.open(written["red.png"]).size == (settings.PIXELS, settings.PIXELS)


# The data ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def sampled():
    rng = np.random.default_rng(0)
    return [scenes.sample_scene(rng) for _ in range(6000)]


def test_training_scenes_never_show_a_held_out_combination(sampled):
    assert not any(scenes.held_out(*words) for scene in sampled for words in scenes.combinations(scene))


def test_a_tenth_of_all_combinations_is_held_out():
    share = np.mean([scenes.held_out(name, ground) for name in subjects.NAMES for ground in scenes.GROUNDS])
    assert 0.08 < share < 0.13
    share = np.mean([scenes.held_out(a, b) for a in subjects.NAMES[:60] for b in subjects.NAMES[:60] if a < b])
    assert 0.08 < share < 0.13


def test_everything_is_sampled(sampled):
    assert {name for scene in sampled for name in scene.subjects} == set(subjects.NAMES)
    assert {scene.background for scene in sampled} == set(scenes.GROUNDS)
    assert {scene.place for scene in sampled} == set(settings.OFFSET)
    assert {scene.size for scene in sampled} == {"", "small", "big"}
    assert {scene.count for scene in sampled} == {1, 2, 3}
    assert {scene.tint for scene in sampled} == {"", *settings.TINTS}


def test_there_are_at_least_150_subjects_with_unicode_names():
    assert len(subjects.NAMES) == len(set(subjects.EMOJI.values())) >= 150
    assert subjects.name_in_unicode("cat") == "cat face"


def test_natural_colours_are_those_of_subjects_and_are_not_shifted_to():
    assert set(subjects.NATURAL_COLOURS) <= set(subjects.NAMES)
    assert {colour for colours in subjects.NATURAL_COLOURS.values() for colour in colours} <= set(settings.PALETTE)
    assert scenes.tints_of("banana") == ["red", "green", "blue", "purple", "pink"]
    assert scenes.tints_of("rainbow") == []


def test_tinted_has_the_hue_of_the_tint_and_keeps_outline_and_white():
    sprite = Image.new("RGBA", (60, 60))
    pen = ImageDraw.Draw(sprite)
    pen.ellipse((0, 0, 59, 59), fill=(250, 120, 0))
    pen.ellipse((20, 20, 40, 40), fill=(255, 255, 255))
    blue = scenes.tinted(sprite, "blue")
    red, green, blueness, _ = blue.getpixel((30, 8))
    assert blueness > green > red and blueness - red > 100
    assert min(blue.getpixel((30, 30))[:3]) > 200
    assert np.array_equal(blue.getchannel("A"), sprite.getchannel("A"))


def test_same_generator_state_draws_the_same_scene(sprites):
    first, second = (drawn(scenes.Scene(("cat",), "night", "big"), sprites) for _ in range(2))
    assert first.shape == (settings.PIXELS, settings.PIXELS, 3) and first.dtype == np.uint8
    assert np.array_equal(first, second)


@pytest.mark.parametrize("scene", [
    scenes.Scene(("cat",), "white"), scenes.Scene(("cat",), "white", "small"), scenes.Scene(("fox", "panda"), "white"),
    scenes.Scene(("bear",), "white", count=3)], ids=captions.caption)
def test_seeds_move_what_is_put_nowhere_and_several_stay_apart(scene, sprites):
    boxes = []
    for seed in range(60):
        placed = list(scenes.laid_out(scene, sprites, np.random.default_rng(seed)))
        boxes.append([(*corner, corner[0] + sprite.width, corner[1] + sprite.height) for sprite, corner in placed])
        for one, other in itertools.combinations(boxes[-1], 2):
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    boxes = np.array(boxes, float)
    assert boxes.min() >= settings.MARGIN and boxes.max() <= settings.PIXELS - settings.MARGIN
    middles = (boxes[..., :2] + boxes[..., 2:]) / 2
    assert (middles.std(axis=0).max(axis=1) > 4).any()


def test_a_place_that_is_said_is_kept_whatever_the_seed(sprites):
    for place in scenes.PLACES:
        for seed in range(20):
            picture = drawn(scenes.Scene(("cat",), "white", "small", place), sprites, seed).astype(np.float32)
            box = recognition.box_of(recognition.outline(picture, recognition.ground_of(picture), False))
            assert recognition.place_of(box) == place.replace("centre", ""), (place, seed)


def test_grounds_are_told_apart_in_every_shade_and_light():
    for ground in scenes.GROUNDS:
        for seed in range(25):
            picture = np.asarray(scenes.draw_ground(ground, np.random.default_rng(seed))).astype(np.float32)
            seen = recognition.ground_of(picture)
            assert recognition.name_of_ground(seen) == ground, (ground, seed)
            assert not recognition.outline(picture, seen, ground in scenes.SCENERY).any() or ground in scenes.SCENERY


def test_drawn_scenes_of_one_caption_differ_by_more_than_20_of_255(sprites):
    scene = scenes.Scene(("cat",), "green")
    assert seeds.difference([drawn(scene, sprites, seed) for seed in range(16)]) > 20


def test_difference_of_seeds_is_the_mean_over_pairs():
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 60, np.uint8)
    assert seeds.difference([black, grey, grey]) == pytest.approx(40)


# The captions --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("scene, text", [
    (scenes.Scene(("apple",), "blue"), "an apple on a blue background"),
    (scenes.Scene(("apple",), "blue", tint="green"), "a green apple on a blue background"),
    (scenes.Scene(("unicorn",), "gray", "", "left"), "a unicorn on the left on a gray background"),
    (scenes.Scene(("grapes",), "white", "small", "top left"),
     "small grapes in the top left corner on a white background"),
    (scenes.Scene(("cat", "rocket"), "white"), "a cat and a rocket on a white background"),
    (scenes.Scene(("fox",), "meadow", count=2), "two foxes on a meadow"),
    (scenes.Scene(("mouse",), "sea", count=3, tint="blue"), "three blue mice at sea"),
    (scenes.Scene((), "night"), "a night sky with stars"),
    (scenes.Scene((), "red"), "a red background"),
])
def test_plain_caption(scene, text):
    assert captions.caption(scene) == text


def test_whole_captions_vary_and_name_everything():
    rng = np.random.default_rng(2)
    scene = scenes.Scene(("owl",), "brown", "small", "top left", tint="blue")
    wordings = {captions.caption(scene, rng, whole=True) for _ in range(200)}
    assert len(wordings) > 50
    for wording in wordings:
        words = set(wording.replace(",", "").split())
        assert {"blue", "owl", "brown", "left"} <= words and words & {"top", "upper"}
        assert words & set(captions.SIZES["small"])


def test_training_captions_sometimes_leave_the_ground_open_and_sometimes_hold_other_words(sampled):
    rng = np.random.default_rng(3)
    scene = scenes.Scene(("owl",), "brown")
    wordings = [captions.caption(scene, rng) for _ in range(1000)]
    assert 20 < sum("brown" not in wording for wording in wordings) < 150
    usual = set(" ".join(captions.caption(scene, rng, whole=True) for scene in sampled[:500]).split())
    assert usual & set(captions.FILLERS)


# The shipped model agrees with the settings ----------------------------------------------------------------------

def shipped(path):
    return json.loads((settings.MODEL / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path, expected", [
    ("unet/config.json", settings.UNET), ("vae/config.json", settings.VAE), ("text_encoder/config.json", settings.TEXT),
    ("scheduler/scheduler_config.json", settings.SCHEDULER), ("model_index.json", dict(guidance_scale=settings.GUIDANCE)),
])
def test_configuration_of_the_shipped_model_is_the_recipes(path, expected):
    config = shipped(path)
    assert {key: config[key] for key in expected} == json.loads(json.dumps(expected))


def test_vocabulary_has_all_bytes_then_one_entry_per_merge_then_the_special_words():
    vocabulary = shipped("tokenizer/vocab.json")
    merges = (settings.MODEL / "tokenizer/merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    entries = sorted(vocabulary, key=vocabulary.get)
    assert [vocabulary[entry] for entry in entries] == list(range(settings.VOCABULARY_SIZE))
    assert entries[256:512] == [entry + "</w>" for entry in entries[:256]]
    assert entries[512:-2] == [merge.replace(" ", "") for merge in merges]
    assert entries[-2:] == ["<|startoftext|>", "<|endoftext|>"]


def test_words_of_subjects_and_colours_are_single_tokens():
    vocabulary = shipped("tokenizer/vocab.json")
    words = {word for name in (*subjects.NAMES, *scenes.COLOURS, "background") for word in name.split()}
    assert {word for word in words if word + "</w>" not in vocabulary} == set()


# The scribbles -------------------------------------------------------------------------------------------------

def test_a_scribble_runs_around_what_it_is_drawn_of():
    down, across = np.indices((settings.PIXELS, settings.PIXELS))
    disc = np.hypot(down - 60, across - 70) < 30
    for seed in range(8):
        lines, area = scribbles.scribble(disc, np.random.default_rng(seed))
        assert lines.shape == disc.shape and lines.dtype == np.uint8
        assert scribbles.iou(area, disc) > 0.85 and not (area == disc).all()
        away = abs(np.hypot(down - 60, across - 70) - 30)
        assert lines[away > 10].max() == 0 and lines[away < 10].max() > 100 and (lines > 127).sum() > 60


def test_scribbles_of_one_mask_differ_by_the_generator_alone():
    mask = np.zeros((settings.PIXELS,) * 2, bool)
    mask[40:90, 30:80] = True
    one, again, other = (scribbles.scribble(mask, np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    assert (one == again).all() and (one != other).any()
    assert not scribbles.scribble(np.zeros_like(mask), np.random.default_rng(0))[0].any()


def test_iou_is_that_of_two_squares():
    one, other = (np.zeros((8, 8), bool) for _ in range(2))
    one[:4, :4], other[:4, 2:6] = True, True
    assert scribbles.iou(one, other) == 8 / 24 and scribbles.iou(one, one) == 1 and scribbles.iou(one, ~one) == 0


def test_what_stands_out_in_a_drawn_scene_is_the_mask_of_its_sprites(sprites):
    scores = []
    for seed, scene in enumerate(ONE_OF_EACH):
        rng = np.random.default_rng(seed)
        picture, mask = scribbles.draw_bent(scene, sprites, rng)
        assert picture.shape == (settings.PIXELS, settings.PIXELS, 3) and mask.shape == picture.shape[:2] and mask.any()
        scores.append(scribbles.iou(scribbles.seen(picture, scene.background), mask))
    assert min(scores) > 0.9
