"""Notebooks as plain Python: their code cells one after the other, with what they print and show.

    python -m tests.notebooks docs/inside-a-picture.ipynb      runs it and writes its outputs anew
"""
import ast
import base64
import contextlib
import io
import json
import pathlib
import sys


def read(path):
    """The notebook at `path`, as the dictionary that its JSON is"""
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


def code(notebook):
    """Its code cells"""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs(cell, names):
    """Run a cell among `names` → what it prints, and its last expression as text or picture, as a notebook keeps them"""
    body = ast.parse("".join(cell["source"])).body
    last = ast.Expression(body.pop().value) if body and isinstance(body[-1], ast.Expr) else None
    value = None
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        if last:
            value = eval(compile(last, "cell", "eval"), names)
    found = []
    if out.getvalue():
        found.append({"output_type": "stream", "name": "stdout", "text": out.getvalue().splitlines(keepends=True)})
    if value is not None:
        data = {"text/plain": ["a picture"] if hasattr(value, "_repr_png_") else [repr(value)]}
        if hasattr(value, "_repr_png_"):
            data["image/png"] = base64.b64encode(value._repr_png_()).decode()
        found.append({"output_type": "execute_result", "execution_count": cell["execution_count"], "data": data,
                      "metadata": {}})
    return found


def main(path):
    notebook, names = read(path), {}
    for number, cell in enumerate(code(notebook), 1):
        cell["execution_count"] = number
        cell["outputs"] = outputs(cell, names)
    pathlib.Path(path).write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
