"""The pages in docs/api, made from the docstrings: python docs/api.py

A page for each public module: its docstring, then its public functions and classes with theirs, as they stand in the
source. Nothing is imported, so that neither numba nor weights are needed.
"""
import ast
import inspect
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODULES = {
    "npdiffusion": "npdiffusion/__init__.py",
    "npdiffusion.loading": "npdiffusion/loading.py",
    "npdiffusion.pipeline": "npdiffusion/pipeline.py",
    "npdiffusion.request": "npdiffusion/request.py",
    "npdiffusion.errors": "npdiffusion/errors.py",
    "npdiffusion.settings": "npdiffusion/settings/table.py",
    "npdiffusion.models.layers": "npdiffusion/models/layers.py",
    "npdiffusion.models.attention": "npdiffusion/models/attention.py",
    "npdiffusion.models.resnet": "npdiffusion/models/resnet.py",
    "npdiffusion.models.transformer": "npdiffusion/models/transformer.py",
    "npdiffusion.models.unet": "npdiffusion/models/unet.py",
    "npdiffusion.models.vae": "npdiffusion/models/vae.py",
    "npdiffusion.models.taesd": "npdiffusion/models/taesd.py",
    "npdiffusion.models.clip": "npdiffusion/models/clip.py",
    "npdiffusion.models.conditioning": "npdiffusion/models/conditioning.py",
    "npdiffusion.text.tokenizer": "npdiffusion/text/tokenizer.py",
    "npdiffusion.diffusion.samplers": "npdiffusion/diffusion/samplers/__init__.py",
    "npdiffusion.diffusion.schedules": "npdiffusion/diffusion/schedules/settings.py",
    "npdiffusion.diffusion.schedules.plan": "npdiffusion/diffusion/schedules/plan.py",
    "npdiffusion.diffusion.noise": "npdiffusion/diffusion/noise/__init__.py",
    "npdiffusion.pictures.preview": "npdiffusion/pictures/preview.py",
    "npdiffusion.pictures.sheets": "npdiffusion/pictures/sheets.py",
    "npdiffusion.pictures.text_inside": "npdiffusion/pictures/text_inside.py",
    "npdiffusion.study": "npdiffusion/study/__init__.py",
    "npdiffusion.study.tracing": "npdiffusion/study/tracing.py",
    "npdiffusion.study.attention": "npdiffusion/study/attention.py",
    "npdiffusion.study.strips": "npdiffusion/study/strips.py",
    "npdiffusion.kernels": "kernels/__init__.py",
    "npdiffusion.kernels.reference": "kernels/reference.py",
}


def pages():
    """{file name: text} of all pages"""
    found = {f"{name}.md": page(name, ROOT / path) for name, path in MODULES.items()}
    lines = [f"- [`{name}`]({name}.md): {summary(ROOT / path)}" for name, path in MODULES.items()]
    return {"README.md": "\n".join(["# API", "", "Made by `python docs/api.py` from the docstrings.", "", *lines, ""])} | found


def summary(path):
    return " ".join(docstring(ast.parse(path.read_text(encoding="utf-8"))).partition("\n\n")[0].split())


def page(name, path):
    """One module: docstring, functions, classes with their methods."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    source = path.relative_to(ROOT).as_posix()
    return "\n".join([f"# {name}", "", f"[{source}](../../{source})", "", *block(docstring(tree)), *members(tree, "")])


def members(node, prefix):
    """Lines for what is public and says what it does."""
    for each in node.body:
        if isinstance(each, (ast.FunctionDef, ast.ClassDef)) and not each.name.startswith("_") and docstring(each):
            kind = "class " if isinstance(each, ast.ClassDef) else ""
            yield from [f"## {kind}`{prefix}{each.name}{signature(each)}`", "", *block(docstring(each))]
            if isinstance(each, ast.ClassDef):
                yield from members(each, f"{each.name}.")


def signature(node):
    if isinstance(node, ast.ClassDef):
        made = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
        return signature(made[0]) if made else ""
    if any(ast.unparse(each).endswith("property") for each in node.decorator_list):
        return ""
    arguments = ast.unparse(node.args)
    for first in ("self", "cls"):
        arguments = arguments.removeprefix(first).removeprefix(", ") if arguments.partition(",")[0] == first else arguments
    return f"({arguments})" + (f" → {ast.unparse(node.returns)}" if node.returns else "")


def docstring(node):
    return inspect.cleandoc(ast.get_docstring(node, clean=False) or "")


def block(text):
    """A docstring as it stands: its columns are part of what it says."""
    return ["```text", *text.splitlines(), "```", ""]


def main():
    folder = ROOT / "docs" / "api"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.md"):
        old.unlink()
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
