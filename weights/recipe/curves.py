"""Curves of a training, drawn from its logs: loss of the UNet, decibels of the autoencoder, accuracy at milestones; loss of the
ControlNet, and how well it follows scribbles.

    python -m weights.recipe.curves            reads the logs in recipe/runs/, writes recipe/curves.webp

The points are kept in recipe/curves.json, so that they outlive the logs: step → value for each curve. The judge adds
its figures with --record.
"""

import json

from PIL import Image, ImageDraw

from npdiffusion.training import runs

from . import settings

POINTS = settings.RECIPE / "curves.json"
SMOOTH = {"unet": 250, "controlnet": 20}                    # steps whose mean loss is a point
ACROSS = 3                                                  # diagrams in a row
SIZE, EDGE = (420, 220), (46, 26, 12, 28)                   # of one diagram; its left, top, right and bottom border
COLOURS = ((214, 48, 49), (60, 110, 210), (70, 160, 80), (140, 80, 180), (243, 143, 42), (90, 90, 95), (130, 86, 56))


def logged(part, value):
    """{step: value} of the log in the run of a part, where it has such a value"""
    folder = settings.RUNS / part
    lines = runs.lines(folder) if (folder / runs.LOG).exists() else []
    return {line["step"]: line[value] for line in lines if value in line}


def record(figures, step):
    """Keep what the judge found after so many steps."""
    known = json.loads(POINTS.read_text()) if POINTS.exists() else {}
    for kind in ("subject", "words", "two", "tint", "count"):
        if kind in figures:
            known.setdefault("right, %", {}).setdefault(kind, {})[str(step)] = figures[kind]
    POINTS.write_text(json.dumps(known, indent=1) + "\n")


def smooth(part):
    """{step: mean of the loss of the steps up to it}"""
    loss, count = logged(part, "loss"), SMOOTH[part]
    steps = sorted(loss)
    return {steps[i + count - 1]: round(sum(loss[step] for step in steps[i:i + count]) / count, 4)
            for i in range(0, len(steps) - count + 1, count)}


def gathered():
    """{diagram: {curve: {step: value}}}, of earlier runs and of this one"""
    known = json.loads(POINTS.read_text()) if POINTS.exists() else {}
    decibel = {step: round(value, 2) for part in ("vae", "decoder") for step, value in logged(part, "psnr").items()}
    overlap = {step: round(value, 3) for step, value in logged("controlnet", "iou").items()}
    for diagram, curve, points in (("loss", "UNet", smooth("unet")), ("decibel", "autoencoder", decibel),
                                   ("loss of the ControlNet", "ControlNet", smooth("controlnet")),
                                   ("IoU of scribbles", "ControlNet", overlap)):
        kept = known.setdefault(diagram, {}).setdefault(curve, {})
        kept.update({str(step): value for step, value in points.items()})
    return known


def diagram(title, curves):
    """One diagram: steps to the right, values upwards."""
    page = Image.new("RGB", SIZE, "white")
    pen, (left, top, right, bottom) = ImageDraw.Draw(page), EDGE
    points = [(int(step), value) for curve in curves.values() for step, value in curve.items()]
    last = max(step for step, _ in points) or 1
    low, high = min(value for _, value in points), max(value for _, value in points)
    low, high = (low - 0.01, high + 0.01) if low == high else (low, high)
    width, height = SIZE[0] - left - right, SIZE[1] - top - bottom

    def place(step, value):
        return left + int(step) / last * width, top + (high - value) / (high - low) * height

    pen.text((left, 6), title, fill=(40, 40, 40), font_size=12)
    for i in range(5):
        value, step = low + (high - low) * i / 4, round(last * i / 4)
        pen.line([place(0, value), place(last, value)], fill=(225, 225, 225))
        pen.text((4, place(0, value)[1] - 6), f"{value:.3g}", fill=(90, 90, 90), font_size=10)
        pen.text((place(step, low)[0], SIZE[1] - 20), f"{step:,}", fill=(90, 90, 90), font_size=10,
                 anchor="ra" if i == 4 else "ma")
    for i, (name, curve) in enumerate(curves.items()):
        line = [place(step, curve[step]) for step in sorted(curve, key=int)]
        pen.line(line, fill=COLOURS[i % len(COLOURS)], width=2)
        for x, y in line if len(line) < 12 else ():
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=COLOURS[i % len(COLOURS)])
        if len(curves) > 1:
            pen.text((left + 6 + i % 4 * 90, SIZE[1] - bottom - 30 + i // 4 * 13), name, fill=COLOURS[i % len(COLOURS)],
                     font_size=10)
    return page


def main():
    diagrams = {title: {name: curve for name, curve in curves.items() if curve} for title, curves in gathered().items()}
    diagrams = {title: curves for title, curves in diagrams.items() if curves}
    POINTS.write_text(json.dumps(diagrams, indent=1) + "\n")
    page = Image.new("RGB", (SIZE[0] * ACROSS, SIZE[1] * -(-len(diagrams) // ACROSS)), "white")
    for i, (title, curves) in enumerate(diagrams.items()):
        page.paste(diagram(title, curves), (i % ACROSS * SIZE[0], i // ACROSS * SIZE[1]))
    page.save(POINTS.with_suffix(".webp"), quality=90)


if __name__ == "__main__":
    main()
