"""The tokenizer equals transformers' CLIPTokenizer, and refuses broken files in one line.

They are compared on the embedded model's vocabulary and on CLIP's, both of which come with the package.
"""
import hashlib
import json
import pathlib
import random
import time
import unicodedata
import warnings

import numpy as np
import pytest

from npdiffusion.errors import UserError
from npdiffusion.text.tokenizer import END, CLIPTokenizer, TextCutOff, byte_alphabet, clip_vocabulary, in_order, words
from tests.differences import agree

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", params=["embedded", "CLIP"])
def folder(request, tmp_path_factory):
    if request.param == "embedded":
        return ROOT / "weights" / "tokenizer"
    written = tmp_path_factory.mktemp("clip")
    vocabulary, merges = clip_vocabulary()
    (written / "vocab.json").write_text(json.dumps(vocabulary))
    (written / "merges.txt").write_text("\n".join(map(" ".join, merges)), encoding="utf-8")
    return written


@pytest.fixture(scope="module")
def pair(folder):
    return CLIPTokenizer.from_folder(folder), reference(folder)


def reference(folder):
    return pytest.importorskip("transformers").CLIPTokenizer.from_pretrained(str(folder))


def assert_equal(ours, theirs, text):
    assert ours.tokenize(text) == theirs.tokenize(text), repr(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextCutOff)
        ids = ours.encode(text)
    expected = theirs(text, padding="max_length", max_length=ours.length, truncation=True)["input_ids"]
    agree("tokenizer", f"numbers of {text[:40]!r}", ids, expected, 0)
    assert ours.decode(ids) == theirs.decode(expected, skip_special_tokens=True), repr(text)


TEXTS = {
    "empty": "", "one space": " ", "plain": "a red apple on a blue background", "capitals": "A RED Apple",
    "contractions": "it's they're I've he'd we'll I'm don't rock'n'roll ''s !'s 'S 'Re",
    "long s is no contraction": "it'ſ 'ſ",
    "curly apostrophe": "it’s", "digits": "4k 1920x1080 3.14 ½ ² Ⅷ ٣ 五 １２",
    "punctuation": "a!!! (b) [c:1.2], d-e_f... #1 @x</w>",
    "white space": "a\tb\nc\r\nd  e\u00a0f\u2003g\u3000h\u2028i\x85j",
    "no white space": "a\x1cb\x1dc\x1ed\x1fe\u200bf\ufeffg\x00h",
    "emoji": "🍎 on 🟦! ❤️ ☕︎ 👍🏽", "joined emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪",
    "chinese": "一只红苹果,蓝色背景。", "japanese": "赤いリンゴ、ｶﾅ が",
    "korean": "빨간 사과 빨간", "arabic": "تُفَّاحَةٌ حَمْرَاء", "hindi": "लाल सेब क़", "thai": "แอปเปิ้ลสีแดง",
    "composed and decomposed": "é e\u0301 Å A\u030a \u212b ≯ >\u0338",
    "stacked marks": "a\u0301\u0316\u0327\u0345 q\u0323\u0307",
    "turkish": "İstanbul ISPARTA ılık i\u0307", "sigma": "ΟΔΥΣΣΕΥΣ Σ ΑΣ. ςΣ", "sharp s and ligatures": "Straße ẞ ﬁ Ǆ ŉ",
    "names": "<|startoftext|>a<|endoftext|>b <|endoftext|>", "names in capitals": "a <|STARTOFTEXT|>!x!<|EndOfText|>'s",
    "name between base and mark": "e<|endoftext|>\u0301", "broken names": "<|startoftext| endoftext|> <|end oftext|>",
    "over-long": "a photo of an astronaut riding a horse " * 20, "exactly 75 words": "a " * 75, "76 words": "a " * 76,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_tokens_ids_and_decoded_text_equal_transformers(pair, text):
    assert_equal(*pair, text)


ATOMS = ["'s", "'T", "'re", "'VE", "'ll", "'d", "'ſ", "ß", "İ", "ı", "Σ", "ς", "\u200d", "\ufe0f", "👩‍👧", "🏳️‍🌈",
         "photo", "12", "<|startoftext|>", "<|endoftext|>", "<|ENDOFTEXT|>", "<|", "|>", "</w>", "!", "  ", "\x85",
         "\x1c", "\xa0", "\t\n", "Å", "e\u0301"]
# Without the marks from after 2016, which transformers does not sort yet (see the module).
RANGES = [(0x20, 0x7F), (0, 0x100), (0x100, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0x980),
          (0xE01, 0xE80), (0x10A0, 0x1200), (0x1E00, 0x2100), (0x2000, 0x2070), (0x2100, 0x2800), (0x2E80, 0x3400),
          (0x4E00, 0x9FA0), (0xAC00, 0xD7A0), (0xF900, 0x10000), (0x10400, 0x10450),
          (0x1D400, 0x1D800), (0x1F300, 0x1FB00)]


def random_text(rng):
    parts = []
    for _ in range(rng.randint(1, 10)):
        low, high = rng.choice(RANGES)
        characters = (chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 4)))
        drawn = "".join(c for c in characters if unicodedata.category(c) not in ("Cn", "Cs"))
        parts.append(rng.choice(ATOMS) if rng.random() < 0.4 else drawn)
    return "".join(parts)


def test_random_unicode_equals_transformers(pair):
    rng = random.Random(2)
    for _ in range(2000):
        assert_equal(*pair, random_text(rng))


def test_random_ids_decode_as_in_transformers(pair):
    ours, theirs = pair
    rng = random.Random(3)
    for _ in range(200):
        ids = [rng.randrange(len(ours.vocabulary)) for _ in range(12)]             # most are broken UTF-8
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_clips_vocabulary_is_the_published_one():
    """49,408 pieces: 256 bytes twice, 48,894 merges and two names; the ids that CLIP's own repository gives for a text"""
    vocabulary, merges = clip_vocabulary()
    assert (len(vocabulary), len(merges)) == (49408, 48894) == (512 + len(merges) + 2, 48894)
    text = "\n".join(sorted(vocabulary, key=vocabulary.get)).encode()
    assert hashlib.sha256(text).hexdigest() == "7cccc44d334555d1ff3c0ac5f0246b428fab2918383e77ee745cf30d41010b78"
    assert CLIPTokenizer.clip().ids("a photo of a cat") == [320, 1125, 539, 320, 2368]


@pytest.mark.parametrize("padding, like", [(END, "Stable Diffusion 1"), ("!", "Stable Diffusion 2")])
def test_clips_tokenizer_treats_names_as_that_of_a_published_folder(tmp_path, padding, like):
    vocabulary, merges = clip_vocabulary()
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("\n".join(map(" ".join, merges)), encoding="utf-8")
    for name, content in LIKE[like].items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    ours, theirs = CLIPTokenizer.clip(padding), reference(tmp_path)
    for name in "plain", "punctuation", "names", "names in capitals", "over-long":
        assert_equal(ours, theirs, TEXTS[name])


def test_a_word_of_20_000_letters_is_spelt_as_in_transformers(pair):
    rng = random.Random(4)
    text = "".join(rng.choice("aeinrst") for _ in range(20_000))
    assert pair[0].tokenize(text) == pair[1].tokenize(text)


def copy_with(folder, target, **files):
    for name in "vocab.json", "merges.txt":
        (target / name).write_bytes((folder / name).read_bytes())
    for name, content in files.items():
        (target / f"{name}.json").write_text(json.dumps(content))
    return target


def added(content, normalized):
    return dict(content=content, lstrip=False, normalized=normalized, rstrip=False, single_word=False)


FRAME = {"bos_token": added("<|startoftext|>", True), "eos_token": added("<|endoftext|>", True),
         "unk_token": added("<|endoftext|>", True)}
TYPED_FRAME = {key: {"__type": "AddedToken", **entry} for key, entry in FRAME.items()}
DECODER = {"0": dict(added("!", False), special=True)}
LIKE = {      # the shapes that tokenizer settings take in published folders
    "Stable Diffusion 1": dict(tokenizer_config={**TYPED_FRAME, "pad_token": "<|endoftext|>", "model_max_length": 77},
                               special_tokens_map={**FRAME, "pad_token": "<|endoftext|>"}),
    "Stable Diffusion 2": dict(tokenizer_config={**TYPED_FRAME, "pad_token": "<|endoftext|>", "model_max_length": 77},
                               special_tokens_map={**FRAME, "pad_token": "!"}),
    "transformers 4": dict(tokenizer_config={"added_tokens_decoder": DECODER, "bos_token": "<|startoftext|>",
                                             "eos_token": "<|endoftext|>", "pad_token": "!", "model_max_length": 77},
                           special_tokens_map={**FRAME, "pad_token": added("<|endoftext|>", True)}),
    "an end in any case": dict(special_tokens_map={**FRAME, "pad_token": added("<|endoftext|>", True)}),
    "another length": dict(tokenizer_config={"model_max_length": 20}),
    "no limit": dict(tokenizer_config={"model_max_length": 10**30}),
}


@pytest.mark.parametrize("files", LIKE.values(), ids=LIKE.keys())
def test_padding_length_and_names_follow_the_folders_settings_as_in_transformers(folder, tmp_path, files):
    copy_with(folder, tmp_path, **files)
    ours, theirs = CLIPTokenizer.from_folder(tmp_path), reference(tmp_path)
    assert ours.length == min(theirs.model_max_length, 77) and ours.padding == theirs.pad_token
    for name in "plain", "punctuation", "names", "names in capitals", "name between base and mark", "over-long":
        assert_equal(ours, theirs, TEXTS[name])


@pytest.mark.parametrize("like", ["Stable Diffusion 1", "Stable Diffusion 2"])
def test_a_folder_that_newer_transformers_saved_is_read_from_its_tokenizer_json(folder, tmp_path, like):
    (tmp_path / "old").mkdir()
    reference(copy_with(folder, tmp_path / "old", **LIKE[like])).save_pretrained(str(tmp_path / "new"))
    assert not (tmp_path / "new" / "vocab.json").exists()
    ours, theirs = CLIPTokenizer.from_folder(tmp_path / "new"), reference(tmp_path / "new")
    assert ours.padding == theirs.pad_token
    for name in "plain", "punctuation", "names in capitals", "emoji", "over-long":
        assert_equal(ours, theirs, TEXTS[name])


def test_ids_are_start_pieces_end_padding(folder):
    tokenizer = CLIPTokenizer.from_folder(folder)
    ids = tokenizer.encode("a red apple")
    start, end = tokenizer.vocabulary["<|startoftext|>"], tokenizer.vocabulary["<|endoftext|>"]
    used = len(tokenizer.tokenize("a red apple"))
    assert ids.shape == (77,) and ids.dtype == np.int64
    assert ids[0] == start and (ids[used + 1:] == end).all() and not {start, end} & {*ids[1:used + 1].tolist()}
    assert tokenizer.decode(ids) == "a red apple"


# What follows needs no reference: a vocabulary small enough to think through.

MERGES = [("l", "o"), ("lo", "w"), ("e", "r</w>"), ("o", "w")]
PIECES = list("lower") + [c + "</w>" for c in "lower"] + ["lo", "low", "er</w>", "ow", "!"]
PIECES += ["<|startoftext|>", "<|endoftext|>"]
VOCABULARY = {piece: number for number, piece in enumerate(PIECES)}


def tiny(**settings):
    return CLIPTokenizer(VOCABULARY, MERGES, **settings)


def test_the_merge_that_was_learnt_first_goes_first():
    assert tiny().tokenize("lower") == ["low", "er</w>"]
    assert tiny().tokenize("ower") == ["ow", "er</w>"]


def test_of_equal_merges_the_leftmost_goes_first():
    pieces = ["a", "a</w>", "aa", "<|startoftext|>", "<|endoftext|>"]
    assert CLIPTokenizer({p: n for n, p in enumerate(pieces)}, [("a", "a")]).tokenize("aaaa") == ["aa", "a", "a</w>"]


def test_a_piece_that_the_vocabulary_lacks_counts_as_the_end():
    assert tiny(length=4).encode("lx").tolist()[1:3] == [VOCABULARY["l"], VOCABULARY["<|endoftext|>"]]


def test_what_does_not_fit_is_quoted_in_a_warning():
    with pytest.warns(TextCutOff, match="4 tokens, 2 fit; cut off: 'lower'$"):
        ids = tiny(length=4).encode("lower lower")
    assert ids.tolist() == [15, VOCABULARY["low"], VOCABULARY["er</w>"], 16]


def test_a_text_that_just_fits_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tiny(length=4).encode("lower").tolist() == [15, VOCABULARY["low"], VOCABULARY["er</w>"], 16]


def test_words_are_contractions_letters_single_digits_and_symbols():
    assert list(words("it's 42!?é² 'tis")) == ["it", "'s", "4", "2", "!?", "é", "²", "'t", "is"]


def test_each_byte_has_a_visible_character_of_its_own():
    alphabet = byte_alphabet()
    assert len(set(alphabet)) == 256 and alphabet[ord(" ")] == "Ġ" and alphabet[ord("a")] == "a"
    assert all(c.isprintable() and not c.isspace() for c in alphabet)


def test_lone_surrogates_are_the_users_error():
    with pytest.raises(UserError, match="not valid Unicode"):
        tiny().encode("a\udce9b")


def write(folder, vocabulary=None, merges=None, **files):
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY) if vocabulary is None else vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\nl o\nlo w\n" if merges is None else merges)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content)
    return folder


def test_a_small_folder_is_read(tmp_path):
    assert CLIPTokenizer.from_folder(write(tmp_path)).ranks == {("l", "o"): 0, ("lo", "w"): 1}


START_END = {"<|startoftext|>": 0, "<|endoftext|>": 1}
BROKEN = {
    "truncated": (dict(vocabulary='{"a": 0, '), "vocab.json: not valid JSON"),
    "a list": (dict(vocabulary="[]"), "vocab.json: a dictionary was expected"),
    "nested too deeply": (dict(vocabulary="[" * 200_000), "vocab.json: not valid JSON"),
    "ids that are no integers": (dict(vocabulary='{"a": "0"}'), "vocab.json should map"),
    "ids that are truth values": (dict(vocabulary='{"a": false}'), "vocab.json should map"),
    "a gap": (dict(vocabulary=json.dumps({**START_END, "a": 3})), "vocab.json should number"),
    "an id used twice": (dict(vocabulary=json.dumps({**START_END, "a": 1})), "vocab.json should number"),
    "no end of text": (dict(vocabulary='{"<|startoftext|>": 0}'), r"vocab.json has no <\|endoftext\|>"),
    "a merge of unknown pieces": (dict(merges="q x\n"), "merge 1 .'q x'. for .*vocab.json"),
    "a merge to an unknown piece": (dict(merges="l o\no l\n"), "merge 2 .'o l'."),
    "a merge of three": (dict(merges="l o w\n"), "merge 1"),
    "settings that are no object": (dict(tokenizer_config="3"), "tokenizer_config.json: a dictionary was expected"),
    "a negative length": (dict(tokenizer_config='{"model_max_length": -1}'), "model_max_length in .* is -1"),
    "a length that is a word": (dict(tokenizer_config='{"model_max_length": "x"}'), "model_max_length in .* is 'x'"),
    "an unknown padding": (dict(tokenizer_config='{"pad_token": "[PAD]"}'), r"pads with '\[PAD\]'"),
    "a padding that is no string": (dict(special_tokens_map='{"pad_token": [1]}'), "the special tokens in"),
}


@pytest.mark.parametrize("files, message", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_named_in_one_line(tmp_path, files, message):
    with pytest.raises(UserError, match=message) as caught:
        CLIPTokenizer.from_folder(write(tmp_path, **files))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


MODELS = {
    "no model": '{"version": "1.0"}', "another kind of model": '{"model": {"vocab": [["a", -1.0]]}}',
    "merges that hold numbers": json.dumps({"model": {"vocab": START_END, "merges": [[1, 2], 3]}}),
    "no vocabulary": '{"model": {"merges": []}}',
}


@pytest.mark.parametrize("content", MODELS.values(), ids=MODELS.keys())
def test_a_broken_tokenizer_json_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="tokenizer.json"):
        CLIPTokenizer.from_folder(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="vocab.json: no such file"):
        CLIPTokenizer.from_folder(tmp_path)
    write(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match="merges.txt: no such file"):
        CLIPTokenizer.from_folder(tmp_path)


def test_a_file_that_is_not_text_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "merges.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="merges.txt: not valid UTF-8"):
        CLIPTokenizer.from_folder(tmp_path)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    write(tmp_path)
    with open(tmp_path / "vocab.json", "wb") as file:
        file.truncate(2**40)                                                        # sparse: takes no room on the disk
    with pytest.raises(UserError, match="vocab.json: it has more than 32 MB"):
        CLIPTokenizer.from_folder(tmp_path)


def test_combining_marks_are_put_in_order_as_nfc_does_and_fast():
    marks, chosen = [chr(i) for i in range(0x300, 0x370)] + ["a", "é", "ệ", " ", "क", "\u093c"], np.random.default_rng(0)
    for _ in range(2000):
        text = "".join(marks[i] for i in chosen.integers(len(marks), size=12))
        assert unicodedata.normalize("NFC", in_order(text)) == unicodedata.normalize("NFC", text)
    start = time.perf_counter()
    unicodedata.normalize("NFC", in_order("a" + "\u0315\u0300" * 50_000))
    assert time.perf_counter() - start < 2
