"""The notes as one PDF: python docs/notes/book.py [notes.pdf]

Markdown is read by markdown-it, its mathematics becomes Typst's, and Typst sets the pages. Both are in the extra `docs`.
"""
import pathlib
import re
import sys

import typst
from markdown_it import MarkdownIt

FOLDER = pathlib.Path(__file__).resolve().parent
MATH = re.compile(r"^\$\$\n(?P<display>.*?)\n\$\$$|\$(?P<inline>[^$\n]+)\$", re.MULTILINE | re.DOTALL)
TOKEN = re.compile(r"\\([A-Za-z]+)|(\d+(?:\.\d+)?)|\s+|(.)", re.DOTALL)
SIGNS = {
    "mid": "∣", "Vert": "‖", "lVert": "‖", "rVert": "‖", "langle": "⟨", "rangle": "⟩", "approx": "≈", "propto": "∝",
    "le": "≤", "ge": "≥", "ne": "≠", "lt": "<", "gt": ">", "partial": "∂", "varnothing": "∅", "odot": "⊙", "cdot": "⋅",
    "times": "×", "infty": "oo", "int": "integral", "prod": "product", "sim": "~", "in": "∈", "phi": "phi.alt",
    "qquad": "quad quad", "to": "->", "pm": "plus.minus"}
FUNCTIONS = {"mathrm": "upright", "mathcal": "cal", "mathbb": "bb", "text": "upright", "bar": "overline", "hat": "hat",
             "tilde": "tilde", "sqrt": "sqrt", "overline": "overline"}
STYLE = """
#set document(title: "npdiffusion: from probability to a picture")
#set page(paper: "a4", margin: (x: 2.4cm, y: 2.2cm), numbering: "1")
#set text(font: ("Libertinus Serif", "DejaVu Sans Mono"), size: 10.5pt, lang: "en")
#set par(justify: true)
#show heading.where(level: 1): it => { pagebreak(weak: true); block(below: 1em, text(1.25em, it)) }
#show raw.where(block: true): it => block(fill: luma(245), inset: 7pt, radius: 2pt, width: 100%, text(0.82em, it))
#show link: it => text(fill: rgb("#2b6cb0"), it)
#show table.cell.where(y: 0): strong
"""


def mathematics(text):
    """LaTeX, as these notes use it → Typst's mathematics"""
    tokens, at = [match.group(0) for match in TOKEN.finditer(text) if not match.group(0).isspace()], 0

    def operand():
        """What stands in braces, or the next token"""
        nonlocal at
        if tokens[at].isdigit():                             # \\frac12 is a half
            tokens[at:at + 1] = tokens[at]
        if tokens[at] != "{":
            return element()
        at += 1
        parts = []
        while tokens[at] != "}":
            parts.append(element())
        at += 1
        return " ".join(parts)

    def words():
        """The letters of \\mathrm{...}, as they are"""
        nonlocal at
        end = tokens.index("}", at)
        inside, at = "".join(tokens[at + 1:end]), end + 1
        return inside

    def element():
        nonlocal at
        token = tokens[at]
        at += 1
        if token in "_^":
            return f"{token}({operand()})"
        if token == "{":
            at -= 1
            return operand()
        if token in ",;":
            return "\\" + token
        if token == "/":
            return "\\/"
        if not token.startswith("\\"):
            return token if token not in '#"$@&' else "\\" + token
        name = token[1:]
        if name == "frac":
            return f"frac({operand()}, {operand()})"
        if name in ("mathrm", "text"):
            return f'upright("{words()}")'
        if name in FUNCTIONS:
            return f"{FUNCTIONS[name]}({operand()})"
        return SIGNS.get(name, name)

    found = []
    while at < len(tokens):
        found.append(element())
    return " ".join(found)


class Page:
    """A chapter as Typst: `markup(text)` of its Markdown"""
    def __init__(self, widths):
        self.widths, self.formulas = widths, []              # columns of each table
        self.markdown = MarkdownIt("commonmark").enable("table")

    def markup(self, text):
        text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
        text = re.sub(r"<details><summary>Answer</summary>\n", "*Answer.*", text).replace("</details>", "")
        text = re.sub(r"^\*\*(Papers?|Source)\.\*\*", r"\n**\1.**", text, flags=re.MULTILINE)
        code = re.split(r"(^```.*?^```$|`[^`\n]+`)", text, flags=re.MULTILINE | re.DOTALL)
        text = "".join(part if i % 2 else MATH.sub(self.kept, part) for i, part in enumerate(code))
        return "".join(self.block(token) for token in self.markdown.parse(text))

    def kept(self, match):
        """A formula's place: letters that Markdown leaves alone"""
        display, inline = match["display"], match["inline"]
        self.formulas.append(f"$ {mathematics(display)} $" if display else f"${mathematics(inline)}$")
        return f"FORMULA{len(self.formulas) - 1}X"

    def block(self, token):
        kind = token.type
        if kind == "inline":
            return "".join(map(self.inline, token.children))
        if kind == "heading_open":
            return "\n" + "=" * int(token.tag[1]) + " "
        if kind == "fence":
            return f"\n```{token.info}\n{token.content}```\n"
        if kind == "table_open":
            return f"\n#table(columns: ({'auto, ' * (self.widths.pop(0) - 1)}1fr), stroke: 0.4pt + luma(200), inset: 6pt,\n"
        opened = {"list_item_open": "\n+ ", "th_open": "[", "td_open": "["}
        closed = {"th_close": "], ", "td_close": "], ", "tr_close": "\n", "table_close": ")\n", "heading_close": "\n",
                  "paragraph_close": "\n\n"}
        return opened.get(kind, closed.get(kind, ""))

    def inline(self, token):
        kind, text = token.type, token.content
        if kind == "text":
            text = re.sub(r"([\\#*_`$@<>~=\[\]])", r"\\\1", text)
            return re.sub(r"FORMULA(\d+)X", lambda match: self.formulas[int(match[1])], text)
        if kind == "code_inline":
            return f"#raw({quoted(text)});"
        if kind == "image":
            caption = "".join(map(self.inline, token.children))
            return f'\n#figure(image("{token.attrs["src"]}", width: 100%), caption: [{caption}], numbering: none)\n'
        if kind == "link_open":
            target = str(token.attrs["href"])
            return f"#link({quoted(target)})[" if target.startswith("http") else "#["
        return {"link_close": "];", "strong_open": "#strong[", "strong_close": "];", "em_open": "#emph[", "em_close": "];",
                "softbreak": "\n", "hardbreak": "\n"}.get(kind, "")


def quoted(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def book():
    """All of it as one text for Typst"""
    files = [FOLDER / "README.md", *sorted(FOLDER.glob("[0-9][0-9]-*.md"))]
    parts = [STYLE]
    for file in files:
        text = re.sub(r"^Next: .*$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        page = Page([row.count("|") - 1 for row in re.findall(r"^\|[-|]+\|$", text, re.MULTILINE)])
        parts.append(page.markup(text))
    return "\n".join(parts)


def main(path="notes.pdf"):
    source = FOLDER / ".book.typ"                                # beside the pictures that it names
    source.write_text(book(), encoding="utf-8")
    try:
        typst.compile(str(source), output=path)
    finally:
        source.unlink()


if __name__ == "__main__":
    main(*sys.argv[1:])
