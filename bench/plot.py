"""RESULTS.md as charts, which README shows: seconds for a picture, beside others; a step against the size of the picture.

    python -m bench plot            writes bench/picture.png and bench/step.png

A picture is so many guided steps and one decoding, both as measured there. Two systems are not of that page, see
"Measured elsewhere" in NOTES.md; the chart says so.
"""
import re

from bench import folders
from bench.results import PAGE
from npdiffusion.errors import UserError

ELSEWHERE = {                           # {system: (seconds of a step, of a decoding)}, and marks that the legend explains
    "what it began with **": (57.6, 0.0),                 # 48 minutes for 50 steps
    "stable-diffusion.cpp, float16 *": (22.9, 35.2),
}
LEGEND = ("medians of bench/RESULTS.md.   * On another machine, two cores of AMD Zen 5.\n"
          "** 48 minutes for 50 steps, as its authors reported; the machine is not known. Both: bench/NOTES.md.")
STEPS = (20, 50)
OURS, THEIRS, OTHERS = "#c2410c", "#64748b", "#cbd5e1"
HEAD = re.compile(r"^(step|decode) of 1 image, (\w+), 512×512", re.MULTILINE)
ROW = re.compile(r"^(npdiffusion|openvino|torch) +(\d+) ", re.MULTILINE)
GROWTH = re.compile(r"^## Step against picture size, (\w+)\n(.*?)(?=^## )", re.MULTILINE | re.DOTALL)
SPELLED = {"npdiffusion": "npdiffusion", "openvino": "OpenVINO", "torch": "torch"}


def add_arguments(parser):
    parser.add_argument("--page", type=folders.of, default=PAGE, help="the results (default bench/RESULTS.md)")
    parser.add_argument("-o", "--output", type=folders.of, default=PAGE.parent, metavar="FOLDER",
                        help="where charts are written (default bench/)")


def run(arguments):
    """Draw the figures of RESULTS.md as charts."""
    try:
        import matplotlib
    except ImportError:
        raise UserError('charts need matplotlib: pip install -e ".[bench]"') from None
    matplotlib.use("Agg")
    page = arguments.page.read_text(encoding="utf-8")
    for name, draw, figures in (("picture", draw_pictures, pictures(page)), ("step", draw_steps, growth(page))):
        path = arguments.output / f"{name}.png"
        draw(figures, machine(page)).savefig(path, dpi=100, metadata={"Software": None})
        print(f"wrote {path}")


def machine(page):
    """The processor and its cores, from the page's first lines"""
    found = re.search(r"^(.+?) \(.*\), (\d+ cores)", page, re.MULTILINE)
    return ", ".join(found.groups()) if found else "one machine"


def measured(page):
    """{("step" or "decode", dtype): {system: median seconds}} of the page's tables at 512×512"""
    parts = [part for part in re.split("```\n", page) if HEAD.match(part)]
    return {HEAD.match(part).groups(): {system: int(ms) / 1000 for system, ms in ROW.findall(part)} for part in parts}


def pictures(page):
    """{system and dtype: {steps: seconds of a picture}}, the slowest first; those of ELSEWHERE among them"""
    found, times = measured(page), dict(ELSEWHERE)
    for what, dtype in found:
        if what == "step":
            for system in found[what, dtype]:
                times[f"{SPELLED[system]}, {dtype}"] = found[what, dtype][system], found["decode", dtype][system]
    seconds = {name: {steps: steps * step + decode for steps in STEPS} for name, (step, decode) in times.items()}
    return dict(sorted(seconds.items(), key=lambda row: -row[1][STEPS[0]]))


def growth(page):
    """{dtype: {pixels of a side: seconds of our step}}"""
    return {dtype: {int(size): float(seconds) for size, seconds in re.findall(r"^\| (\d+) \| ([\d.]+) ", text, re.MULTILINE)}
            for dtype, text in GROWTH.findall(page)}


def draw_pictures(seconds, machine):
    """Bars of pictures(page): up to the fewer steps in full colour, up to the more in a pale one → matplotlib figure"""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    axes = figure.subplots()
    longest = max(row[STEPS[-1]] for row in seconds.values())
    for place, (name, row) in enumerate(seconds.items()):
        colour = OURS if name.startswith("npdiffusion") else OTHERS if name in ELSEWHERE else THEIRS
        axes.barh(place, row[STEPS[-1]], color=colour, height=0.7, alpha=0.35)
        axes.barh(place, row[STEPS[0]], color=colour, height=0.7)
        times = "   ".join(clock(row[steps]) for steps in STEPS)
        axes.text(row[STEPS[-1]] + longest / 100, place, times, va="center", fontsize=9)
    axes.set_yticks(range(len(seconds)), [*seconds])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * longest)
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_title(f"A picture of 512×512 pixels: {STEPS[0]} and {STEPS[1]} steps and decoding, min:s", fontsize=11, loc="left")
    figure.supxlabel(f"{machine}: {LEGEND}", fontsize=8, color="#475569")
    return figure


def draw_steps(seconds, machine):
    """Lines of growth(page) → matplotlib figure"""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for (dtype, times), colour in zip(seconds.items(), (OURS, THEIRS)):
        axes.plot([*times], [*times.values()], "o-", color=colour, label=dtype)
        for size, time in times.items():
            axes.annotate(f"{time:.2g}" if time < 10 else f"{time:.0f}", (size, time), (0, 7), textcoords="offset points",
                          ha="center", fontsize=8)
    axes.set_yscale("log")
    axes.set_ylim(min(min(times.values()) for times in seconds.values()) / 1.6, 90)
    axes.set_xticks(sizes := sorted({size for times in seconds.values() for size in times}), [f"{size}²" for size in sizes])
    axes.set_yticks([1, 10], ["1 s", "10 s"])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title("A guided step of Stable Diffusion v1, by the size of the picture in pixels", fontsize=11, loc="left")
    figure.supxlabel(f"{machine}: medians of bench/RESULTS.md", fontsize=8, color="#475569")
    return figure


def clock(seconds):
    """As minutes and seconds: "1:14" """
    return f"{round(seconds) // 60}:{round(seconds) % 60:02}"
