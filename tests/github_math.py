r"""Would GitHub show the formulas of a page as they were meant? Its Markdown comes first and may change what MathJax gets.

    $x_1$2     a letter or digit beside $: no formula, but money          $ x$       nor with a space inside
    $a}_b_$    _ and * may open emphasis, \\ and \{ lose a backslash, <b is a tag, a line that begins with - a list:
               each formula must come through CommonMark unchanged
    < > &      become entities; \operatorname, \newcommand and what else GitHub has switched off is shown in red
"""
import re

CODE = re.compile(r"^(```|~~~).*?^\1\s*$|``.+?``|`[^`\n]+`|<!--.*?-->", re.MULTILINE | re.DOTALL)
DISPLAY = re.compile(r"\$\$(.*?)\$\$", re.DOTALL)
INLINE = re.compile(r"\$([^$\n]+)\$")
REFUSED = re.compile(r"\\(operatorname|newcommand|renewcommand|def|let|href|url|class|style|cssId|require|includegraphics|"
                     r"unicode|label|ref|eqref|tag|bbox|html\w*)(?![A-Za-z])|[<>&#%]|\\[^A-Za-z]")


def mistakes(text):
    """[(line, what is wrong), ...] of a page's Markdown"""
    text = CODE.sub(lambda match: "\n" * match[0].count("\n") + "x", text)
    found = []
    note = lambda place, what: found.append((text.count("\n", 0, place) + 1, what))
    formulas = [(match.start(), match[1]) for match in DISPLAY.finditer(text)]
    rest = DISPLAY.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    for match in INLINE.finditer(rest):
        formulas.append((match.start(), match[1]))
        before, after = rest[:match.start()][-1:], rest[match.end():][:1]
        if before.isalnum() or after.isalnum() or match[1] != match[1].strip():
            note(match.start(), f"${match[1]}$ is no formula: a letter, a digit or a space is beside a $")
    if (left := INLINE.sub(lambda match: " " * len(match[0]), rest).find("$")) >= 0:
        note(left, "a $ is left over")
    for place, formula in formulas:
        if refused := REFUSED.search(formula):
            note(place, f"{refused[0]} in {formula.strip()}")
        if re.search(r"^\s*([-+*]\s|\d+[.)]\s|=+\s*$|-+\s*$)", formula, re.MULTILINE):
            note(place, f"a line of a formula begins like a list or underlines a heading: {formula.strip()}")
    shown = through_markdown(text)
    for place, formula in formulas:
        if squeezed(formula) not in shown:
            note(place, f"Markdown changes {formula.strip()}")
    return found


def through_markdown(text):
    """The text that CommonMark with GitHub's tables would show, without any of its markup and spaces"""
    from markdown_it import MarkdownIt
    inside = [token for block in MarkdownIt("commonmark").enable("table").parse(text) for token in block.children or []]
    return squeezed("".join({"text": token.content, "softbreak": ""}.get(token.type, "\0") for token in inside))


def squeezed(text):
    return re.sub(r"\s+", "", text)
