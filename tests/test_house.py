"""How the code is laid out: rooms and their legends, and which module imports which (CONTRIBUTING.md says why)."""
import ast
import configparser
import functools
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOP = {"__init__.py", "__main__.py", "errors.py", "given.py", "loading.py", "pipeline.py", "py.typed", "request.py",
       "version.py", "adapters", "checkpoints", "command", "diffusion", "jobs", "memory", "models", "painting", "pictures",
       "server", "settings", "study", "text", "training"}
LIBRARIES = {"numpy", "numba", "llvmlite", "scipy", "PIL", "safetensors", "tqdm", "huggingface_hub", "starlette", "uvicorn",
             "dask", "distributed"}


def name_of(path):
    """npdiffusion/text/__init__.py → npdiffusion.text, kernels/fast.py → npdiffusion.kernels.fast"""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "npdiffusion" else ("npdiffusion", *parts)
    return ".".join(parts).removesuffix(".__init__")


MODULES = {name_of(path): path for room in ("npdiffusion", "kernels") for path in sorted((ROOT / room).rglob("*.py"))}
FOLDERS = [name for name, path in MODULES.items() if path.name == "__init__.py"]


@functools.cache
def tree(name):
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


@functools.cache
def imports(name):
    """Modules that a module imports, within functions as well: an import that waits hides a circle, but doesn't break it.

    `from room import x` is the file x of that room if there is one, else the room itself. What is imported by a name
    that is put together at run time (a subcommand, the twin of a backend) isn't seen.
    """
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if name in FOLDERS else name.split(".")[:-1]
            package = package[:len(package) - node.level + 1] if node.level else []
            source = ".".join([*package, *filter(None, [node.module])])
            found |= {each if (each := f"{source}.{alias.name}") in MODULES else source for alias in node.names}
    return found


def within(name, room):
    return name == room or name.startswith(room + ".")


def test_no_module_imports_itself_by_way_of_others():
    done, way = set(), []

    def follow(name):
        assert name not in way, " → ".join([*way[way.index(name):], name])
        if name not in done:
            way.append(name)
            for each in sorted(imports(name) & MODULES.keys()):
                follow(each)
            done.add(way.pop())

    for name in MODULES:
        follow(name)


@pytest.mark.parametrize(("room", "allowed"), [
    ("kernels", ["kernels"]),
    ("models", ["models", "kernels", "errors"]),
])
def test_a_lower_room_imports_nothing_above_it(room, allowed):
    allowed = [f"npdiffusion.{each}" for each in allowed]
    for name in MODULES:
        if within(name, f"npdiffusion.{room}"):
            above = {each for each in imports(name) & MODULES.keys() if not any(within(each, low) for low in allowed)}
            assert not above, f"{name} imports {sorted(above)}"


def test_only_the_command_prints_and_nobody_else_imports_it():
    for name in MODULES:
        if not any(within(name, f"npdiffusion.{room}") for room in ("command", "__main__", "kernels")):
            assert not any(within(each, "npdiffusion.command") for each in imports(name)), name
            printed = [node.lineno for node in ast.walk(tree(name)) if isinstance(node, ast.Call)
                       and isinstance(node.func, ast.Name) and node.func.id == "print"]
            assert not printed, f"{name} prints in line {printed}"


def test_networks_open_no_files():
    forbidden = {"open", "fdopen", "read_text", "read_bytes", "write_text", "write_bytes", "memmap", "fromfile", "mmap"}
    for name in MODULES:
        if within(name, "npdiffusion.models"):
            called = {getattr(node.func, "id", getattr(node.func, "attr", None)) for node in ast.walk(tree(name))
                      if isinstance(node, ast.Call)}
            assert not called & forbidden, name


def test_no_framework_is_imported():
    for name in MODULES:
        outside = {each.partition(".")[0] for each in imports(name)} - {"npdiffusion"}
        assert outside <= LIBRARIES | sys.stdlib_module_names, name


# ---- what a listing shows

def test_the_top_of_the_package_is_a_short_list():
    assert {path.name for path in (ROOT / "npdiffusion").iterdir()} - {"__pycache__"} == TOP


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_opens_with_a_legend_of_its_files(folder):
    legend, here = ast.get_docstring(tree(folder)), MODULES[folder].parent
    for path in here.iterdir():
        if path.suffix == ".py" and not path.stem.startswith("__"):
            assert re.search(rf"(?<![\w/]){path.stem}(\.py)?(?!\w)", legend), f"{path.name} is missing"
        elif (path / "__init__.py").exists():
            assert f"{path.name}/" in legend, f"{path.name}/ is missing"
    known = {path.name for path in MODULES.values()}
    assert known.issuperset(re.findall(r"(?<![\w/.])\w+\.py\b", legend)), "it names files that are gone"


def test_every_folder_with_code_is_packaged():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert set(setup["options"]["packages"].split()) == {*FOLDERS, "npdiffusion.weights"}


def test_tests_import_nothing_from_each_other():
    for path in (ROOT / "tests").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tests":
                names = [node.module.partition(".")[2], *(alias.name for alias in node.names)]
                assert not [name for name in names if name.startswith("test_")], f"{path.name}, line {node.lineno}"
