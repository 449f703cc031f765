"""__name__ in a prompt is a line of name.txt."""
import collections
import time

import pytest

from npdiffusion.errors import UserError
from npdiffusion.jobs.wildcards import Wildcards, note_unfilled


@pytest.fixture
def words(tmp_path):
    """Wildcards in a folder; called with {name: lines}."""
    def make(**contents):
        for name, text in contents.items():
            path = tmp_path / "words" / f"{name.replace('__', '/')}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return Wildcards(tmp_path / "words")
    return make


def test_each_line_is_chosen_about_as_often(words):
    w = words(a="x\ny\nz\n")
    chosen = collections.Counter(w.expand(seed, "__a__")[0] for seed in range(3000))
    assert set(chosen) == {"x", "y", "z"} and min(chosen.values()) > 900


def test_the_same_seed_chooses_the_same(words):
    w = words(a="\n".join(map(str, range(1000))))
    assert w.expand(7, "__a__ __a__", "__a__") == w.expand(7, "__a__ __a__", "__a__")
    assert w.expand(7, "__a__") != w.expand(8, "__a__")


def test_wildcards_may_hold_wildcards(words):
    assert words(a="[__b-c__ and __d__e__]", d__x="no", **{"b-c": "b"}, d="d").expand(1, "__a__!") == ["[b and de__]!"]
    assert words(animals__pets="cat").expand(1, "__animals/pets__") == ["cat"]


@pytest.mark.parametrize("prompt, filled", [
    ("__hair color__ hair", "red hair"), ("__col.v2__ hair", "red hair"), ("__ hair color __", "__ hair color __"),
    ("__hair color__ and __col.v2__", "red and red"), ("fill __ the __ gap", "fill __ the __ gap"),
    ("__a b/hair color__", "red"), ("__.hair__ __hair.__", "__.hair__ __hair.__")])
def test_names_may_have_spaces_and_points_inside(prompt, filled, words):
    w = words(**{"hair color": "red", "col.v2": "red", "a b__hair color": "red"})
    assert w.expand(1, prompt) == [filled]


def test_a_name_of_several_words_without_a_file_is_an_error():
    with pytest.raises(UserError, match="__two words__: there is no two words.txt"):
        Wildcards(".").expand(1, "a __two words__ cat")


def test_lines_longer_than_a_prompt_may_be_are_an_error(words):
    w = words(c="x" * 2_000_000, a="__c__ " * 40, d="x" * 60_000)
    for text, name in ("__a__", "c"), ("__d____d__", "d"):
        with pytest.raises(UserError, match=f"{name}.txt: its lines, and those that they lead to, make the prompt longer"):
            w.expand(1, text)
    assert len(w.expand(1, "__d__")[0]) == 60_000


def test_names_are_found_in_time_that_grows_with_the_text(words):
    w, start = words(a="x"), time.perf_counter()
    for text in ("__a " * 25_000, "__" + "a " * 50_000, "__" + "a/" * 50_000, "__a/" * 25_000, "__" + "a" * 99_998):
        assert w.expand(1, text) == [text]
    assert time.perf_counter() - start < 5


def test_empty_lines_and_comments_are_no_choice(words):
    w = words(a="\ufeff# comment\n\n  x  \n#y\n")
    assert {w.expand(seed, "__a__")[0] for seed in range(50)} == {"x"}


def test_an_unknown_name_gets_the_nearest(words):
    with pytest.raises(UserError, match="__color__: there is no color.txt in .*words, did you mean __colour__[?]"):
        words(colour="red").expand(1, "a __color__ cat")


@pytest.mark.parametrize("contents", [
    dict(a="__a__"), dict(a="__b__", b="x __a__"), dict(a="__b__" * 40, b="__c__" * 40, c="x")])
def test_names_that_lead_back_or_on_and_on_are_an_error(contents, words):
    with pytest.raises(UserError, match="leads back to itself, or to more than 1000 others"):
        words(**contents).expand(1, "__a__")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "a/../../secret", "C:\\x"])
def test_names_that_would_leave_the_folder_are_no_wildcards(name, words, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    assert words(a="x").expand(1, f"__{name}__") == [f"__{name}__"]


def test_a_link_out_of_the_folder_is_not_followed(words, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    w = words(a="x")
    (tmp_path / "words" / "b.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(UserError, match="b.txt: it links to a place outside of the folder"):
        w.expand(1, "__b__")


def test_files_that_cannot_be_used_are_named(words, tmp_path):
    w = words(empty="\n# only this\n")
    (tmp_path / "words" / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "words" / "folder.txt").mkdir()
    messages = {"empty": "there is no line in it", "latin": "not valid UTF-8", "folder": "not a file"}
    for name, message in messages.items():
        with pytest.raises(UserError, match=f"{name}.txt: {message}"):
            w.expand(1, f"__{name}__")
    with pytest.raises(UserError, match="no such folder of wildcards"):
        Wildcards(tmp_path / "nowhere")


def test_a_wildcard_without_a_folder_is_noted():
    with pytest.warns(UserWarning, match="__two words__ in the prompt is taken as words: --wildcards names the folder"):
        note_unfilled(["a cat", "a __two words__ and __b__"])
