"""The recipe of the embedded model: its data, its vocabulary, its training tools, and above all its judge.

Whoever judges must be judged first: real scenes have to pass, scenes that show something else have to fail. That is
tested with a few stand-in sprites, so that it needs no font, and with the font's own where it is installed.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from npdiffusion.weights.recipe import captions, exam, recognition, scenes, settings, subjects

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


# Training tools (need torch) -----------------------------------------------------------------------------------

def test_orthogonalised_keeps_directions_and_evens_out_singular_values():
    torch = pytest.importorskip("torch")
    from npdiffusion.weights.recipe.muon import orthogonalised
    torch.manual_seed(0)
    wide = torch.randn(24, 60) * torch.logspace(-1, 1, 24)[:, None]
    matrices = [wide, torch.randn(40, 24), torch.randn(8, 9)]
    assert torch.linalg.svdvals(wide).max() / torch.linalg.svdvals(wide).min() > 50
    for m, found in zip(matrices, orthogonalised(matrices)):
        values = torch.linalg.svdvals(found)
        assert found.shape == m.shape and 0.5 < values.min() and values.max() < 1.4
        u, _, vh = torch.linalg.svd(m, full_matrices=False)
        assert torch.trace(u.T @ found @ vh.T) > 0.8 * min(m.shape)              # close to U Vᵀ


def test_rate_warms_up_stays_and_falls_to_zero_at_the_end_of_the_plan():
    pytest.importorskip("torch")
    from npdiffusion.weights.recipe.training import rate_at
    plan = dict(end=1000, fresh=0, warm_up=100, decay=200)
    assert rate_at(9, **plan) == pytest.approx(0.1)
    assert rate_at(99, **plan) == rate_at(800, **plan) == 1.0
    assert rate_at(900, **plan) == pytest.approx(0.5)
    assert rate_at(1000, **plan) == rate_at(1300, **plan) == pytest.approx(0.0)
    assert rate_at(509, **plan | dict(fresh=500)) == pytest.approx(0.1)          # optimisers that begin anew warm up


def test_averaged_weights_swap_in_and_out():
    torch = pytest.importorskip("torch")
    from npdiffusion.weights.recipe.training import Averaged
    model = torch.nn.Linear(2, 2, bias=False)
    averaged = Averaged(model, decay=0.5)
    start = model.weight.detach().clone()
    model.weight.data += 1
    averaged.update(model, step=10 ** 6)
    averaged.swap(model)
    assert torch.allclose(model.weight, start + 0.5)
    averaged.swap(model)
    assert torch.allclose(model.weight, start + 1)


def test_state_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    from npdiffusion.weights.recipe import training
    path = tmp_path / "runs" / "state.pt"
    training.save_atomically({"step": 1}, path)
    monkeypatch.setattr(torch, "save", lambda state, file: Path(file).write_bytes(b"half a sta") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        training.save_atomically({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}


def test_training_goes_on_at_its_state_else_at_the_shipped_model_else_at_the_beginning(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from npdiffusion.weights.recipe import training
    monkeypatch.setattr(settings, "MODEL", tmp_path)
    monkeypatch.setattr(settings, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(training, "PROGRESS", tmp_path / "progress.json")
    (tmp_path / "unet").mkdir()
    save_file({"weight": torch.full((2, 2), 7.0).half()}, tmp_path / "unet" / "x.safetensors")

    def begun():
        model = torch.nn.Linear(2, 2, bias=False)
        model.weight.data[:] = 1
        return training.begun("unet", dict(unet=model)), model

    saved, model = begun()
    assert saved["step"] == 0 and (model.weight == 1).all()
    (tmp_path / "progress.json").write_text('{"unet": 30}')
    saved, model = begun()
    assert saved["step"] == saved["fresh"] == 30 and (model.weight == 7).all() and (saved["averaged"][0] == 7).all()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    training.save("unet", dict(unet=model), [optimizer], training.Averaged(model, 0.9), step=40, fresh=30)
    saved, model = begun()
    assert saved["step"] == 40 and saved["fresh"] == 30 and saved["optimizers"] and (model.weight == 7).all()
