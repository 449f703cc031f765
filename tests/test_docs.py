"""README and the pages of docs/ run as they stand; what they show is made there, and what they link to exists.

Weights that are not at hand are tiny ones made for it (stand_ins.py). Of the pictures of a command, a UNet computes one step
and the autoencoder decodes one picture, whose results are then repeated: what is claimed is that every line is accepted and
comes to its end, with all of its options and at its sizes. Lines that install something are checked for their form (pages.py).
"""
import ast
import contextlib
import io
import re
import shlex
import shutil
import tokenize

import numpy as np
import pytest
from PIL import Image

from npdiffusion import kernels
from npdiffusion.checkpoints import library
from npdiffusion.command import cli, like
from npdiffusion.errors import UserError
from npdiffusion.models.unet import UNet2DConditionModel
from npdiffusion.models.vae import AutoencoderKL
from npdiffusion.pictures.images import save_png
from npdiffusion.pictures.text_inside import png_info
from npdiffusion.training import loop
from tests import pages, stand_ins

LINK = re.compile(r"\]\(([^()#:\s]+)\)")
READ = ("docs/scribble.png", "docs/outline.png", "docs/mushrooms.webp", "docs/lora.py")     # what commands read from a checkout
EVERY = [pages.ROOT / "README.md", *sorted((pages.ROOT / "docs").rglob("*.md")),
         *(pages.ROOT / folder / "README.md" for folder in ("weights", "weights/recipe")),
         *sorted((pages.ROOT / "bench").glob("*.md"))]
UNET, VAE, TRAIN = UNet2DConditionModel.__call__, AutoencoderKL.decode, loop.train


def name(page):
    return str(page.relative_to(pages.ROOT))


def shown(page):
    """The pictures on a page, by their paths from the root"""
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if link.endswith((".png", ".webp"))]
    return [(page.parent / link).resolve().relative_to(pages.ROOT).as_posix() for link in links]


def code_lines(path):
    """How many lines of a file have code on them"""
    text = path.read_text(encoding="utf-8")
    docstrings = {line for node in ast.walk(ast.parse(text))
                  if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None
                  for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    nothing = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines = {line for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in nothing
             for line in range(token.start[0], token.end[0] + 1)}
    return len(lines - docstrings)


def prepare(folder):
    """What a checkout has that commands read."""
    for file in READ:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pages.ROOT / file, folder / file)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A user's home with weights of each kind."""
    folder = tmp_path_factory.mktemp("home")
    stand_ins.write(folder)
    return folder


@pytest.fixture
def at_home(home, tmp_path, monkeypatch):
    """The environment of a user who has set nothing."""
    for variable in (library.VARIABLE, "NPDIFFUSION_BACKEND", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE",
                     "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    backend = kernels.backend()
    yield tmp_path
    kernels.use_backend(backend)


@pytest.fixture
def one_step(monkeypatch):
    """Each UNet and each autoencoder answers as it did the first time it was asked for that size, but on a tape; a training
    ends after two steps."""
    def predict(unet, latents, timesteps, conditioning, *led):
        if kernels.recorder():
            return UNET(unet, latents, timesteps, conditioning, *led)
        states = getattr(conditioning, "states", conditioning)       # or an array, which a model takes, too
        key = id(unet), latents.shape, len(conditioning), states.shape
        if key not in answers:
            answers[key] = unet, UNET(unet, latents, timesteps, conditioning, *led)
        return answers[key][1].copy()

    def decode(vae, latents, tile=None):
        if kernels.recorder():
            return VAE(vae, latents, tile)
        key = id(vae), latents.shape, tile
        if key not in answers:
            answers[key] = vae, VAE(vae, latents, tile)
        return answers[key][1].copy()
    answers = {}                                          # the models are kept, too, so that no id is used again
    monkeypatch.setattr(UNet2DConditionModel, "__call__", predict)
    monkeypatch.setattr(AutoencoderKL, "decode", decode)
    monkeypatch.setattr(loop, "train", lambda training, run, steps, *more: TRAIN(training, run, min(steps, 2), *more))


# ---- the pages

@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", pages.PAGES, ids=name)
def test_a_page_runs_as_it_stands_and_makes_the_pictures_that_it_names(page, at_home, one_step):
    blocks = pages.blocks(page)
    with contextlib.closing(pages.Session(at_home, prepare)) as session:
        for block in blocks:
            session.run(block)
    for file in shown(page):
        if any(file in block.text for block in blocks if block.language != "text"):        # text needs other programs
            assert Image.open(session.place / file).size == Image.open(pages.ROOT / file).size, file


@pytest.mark.parametrize("page", [page for page in pages.PAGES if shown(page)], ids=name)
def test_pictures_of_docs_are_named_by_the_commands_that_make_them(page):
    makers = pages.PAGES if page.parent == pages.ROOT else [page]
    commands = "".join(block.text for maker in makers for block in pages.blocks(maker))
    assert [file for file in shown(page) if file.startswith("docs/") and file not in commands] == []


@pytest.mark.parametrize("page", pages.PAGES, ids=name)
def test_every_block_says_what_it_is(page):
    assert {block.language for block in pages.blocks(page)} <= {*pages.LANGUAGES}


@pytest.mark.parametrize("page", EVERY, ids=name)
def test_files_that_a_page_links_to_exist(page):
    links = LINK.findall(page.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_index_has_every_page():
    links = LINK.findall((pages.ROOT / "docs" / "README.md").read_text(encoding="utf-8"))
    assert {page.name for page in pages.PAGES[1:]} - {"README.md"} <= {*links}


def test_every_room_is_named_in_the_readme():
    links = LINK.findall(pages.PAGES[0].read_text(encoding="utf-8"))
    rooms = [file.relative_to(pages.ROOT) for file in (pages.ROOT / "npdiffusion").glob("*/__init__.py")]
    assert len(rooms) >= 10 and {*map(str, rooms)} <= {*links}


def test_what_is_to_be_read_for_a_picture_is_as_long_as_the_readme_says():
    """Lines of code, without comments and docstrings, of the files in the table, to a tenth."""
    text = pages.PAGES[0].read_text(encoding="utf-8")
    said = int(re.search(r"some (\d+) lines of code", text)[1])
    table = text.partition("## How it is built")[2].partition("Everything else")[0]
    assert sum(code_lines(pages.ROOT / file) for file in LINK.findall(table)) == pytest.approx(said, rel=0.1)


def test_tokens_are_shown_as_the_page_on_prompts_shows_them(capsys):
    block, = (block for block in pages.blocks(pages.ROOT / "docs" / "prompts.md") if block.language == "console")
    command, *shown_lines = block.text.splitlines()
    assert cli.main(shlex.split(command)[2:]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:len(shown_lines) - 1] == shown_lines[:-1] and shown_lines[-1].strip() == "..."


def test_settings_read_from_a_picture_make_it_again(at_home):
    """The page's own lines, in full."""
    blocks = pages.blocks(pages.ROOT / "docs" / "settings-in-pictures.md")
    example, = (block for block in blocks if "like.settings" in block.text)
    assert cli.main(["a red apple", "-n", "blue", "--steps", "2", "--sampler", "ddim", "--eta", "0.4", "--clip-skip", "2",
                     "-s", "3", "--subseed", "4", "--subseed-strength", "0.2", "-W", "64", "-H", "72", "-o", "apple.png"]) == 0
    session = pages.Session(at_home, prepare)
    session.run(example)
    assert np.array_equal(np.asarray(session.names["image"]), np.asarray(Image.open("apple.png")))


def test_settings_of_a_random_seed_have_none(at_home):
    text = "a cat\nSteps: 5, Seed: -1, Noise Schedule: Zero Terminal SNR, RNG: CPU"
    save_png(Image.new("RGB", (8, 8)), "in.png", png_info(text))
    settings, model = like.settings("in.png")
    assert "seed" not in settings and settings["rescale_betas_zero_snr"] is True
    assert model == {"path_or_id": None, "vae": None, "refiner": None}
    save_png(Image.new("RGB", (8, 8)), "text.png", png_info("a cat"))
    with pytest.raises(UserError, match="no settings inside"):
        like.settings("text.png")


# ---- the runner: what is wrong on a page fails

@pytest.mark.parametrize("text", [
    "npdiffusion --nonsense", "cat nowhere.txt", "false && true", "pip install 'npdiffusion[hub]'",
    "pip install -e '.[nothing]'", "python nowhere.py", "python -m npdiffusion --nonsense", "npdiffusion tokens cat | false"])
def test_a_line_that_fails_fails_its_block(text, at_home):
    session = pages.Session(at_home, prepare)
    with pytest.raises(AssertionError, match="line 7, exit code"):
        session.run(pages.Block("sh", f"true\n{text}\n", 7))


def test_variables_files_and_the_current_folder_stay_from_block_to_block(at_home):
    session = pages.Session(at_home, prepare)
    session.run(pages.Block("sh", "export WORD=cat\nmkdir inside && cd inside\n", 1))
    session.run(pages.Block("console", "$ echo $WORD > word.txt\nthis is what it prints\n", 1))
    session.run(pages.Block("python", "text = open('word.txt').read()", 1))
    session.run(pages.Block("python", "print(text)", 1))
    assert session.printed == "cat\n\n" and session.place == at_home / "inside"
