"""The UNet as a drawing (SVG): its blocks on their levels, with the shapes that pass through them and the time they take.

Down the left side, up the right one, each level half as wide and high as the one above it; dashed lines are the skip
connections. A block is as wide as it has channels and as tall as its maps are, both on a logarithmic scale.
"""
import html
import itertools
import math

WIDTH, ROW, MARGIN = 860, 92, 46


def unet(layers, images=1):
    """Layers of a trace, {name: tracing.Layer} → SVG text, "" if no UNet was traced"""
    blocks = {}
    for name, layer in layers.items():
        part, _, path = name.partition(".")
        if part != "unet":
            continue
        first, *rest = path.split(".")
        block = f"{first}.{rest[0]}" if first in ("down_blocks", "up_blocks") else first
        row = blocks.setdefault(block, {"seconds": 0.0, "flop": 0, "shape": None})
        row["seconds"] += layer.seconds
        row["flop"] += layer.flop * layer.calls
        if len(layer.shape_out) == 4 and "samplers" not in path:
            row["shape"] = layer.shape_out[1:]
    downs = [name for name in blocks if name.startswith("down_blocks")]
    ups = [name for name in blocks if name.startswith("up_blocks")]
    if not downs or len(downs) != len(ups):
        return ""
    last = len(downs) - 1
    places = {"conv_in": (MARGIN + 40, 0)}
    step = (WIDTH / 2 - 200) / max(last, 1)
    for level, name in enumerate(downs):
        places[name] = (MARGIN + 130 + level * step * 0.72, level)
    places["mid_block"] = (WIDTH / 2, last + 1)
    for number, name in enumerate(ups):
        places[name] = (WIDTH - MARGIN - 130 - (last - number) * step * 0.72, last - number)
    places["conv_out"] = (WIDTH - MARGIN - 40, 0)
    largest = max(max(row["shape"][:2]) for row in blocks.values() if row["shape"])
    total = sum(row["seconds"] for row in blocks.values())
    lines = []
    for left, right in zip(downs, reversed(ups)):
        (x0, level), (x1, _) = places[left], places[right]
        y = height(level)
        lines.append(f'<line class="skip" x1="{x0 + 40:.0f}" x2="{x1 - 40:.0f}" y1="{y:.0f}" y2="{y:.0f}"/>')
    way = ["conv_in", *downs, "mid_block", *ups, "conv_out"]
    for before, after in itertools.pairwise(way):
        (x0, a), (x1, b) = places[before], places[after]
        lines.append(f'<path class="flow" d="M{x0:.0f} {height(a):.0f}L{x1:.0f} {height(b):.0f}"/>')
    boxes = [box(name, *places[name], blocks[name], largest, total) for name in way if blocks.get(name, {}).get("shape")]
    title = "The UNet: shapes on the way down, through the middle, and up again, with the share of time of each block"
    return (f'<svg class="unet" viewBox="0 0 {WIDTH} {ROW * (last + 2) + 24}" role="img" aria-label="{title}">'
            f'<title>{title}</title>{"".join(lines)}{"".join(boxes)}</svg>')


def height(level):
    """y of the middle of a level"""
    return ROW * level + 40


def box(name, x, level, row, largest, total):
    """A block with its name, shape and share of the time"""
    h, w, channels = row["shape"]
    wide, tall = 12 + 7 * math.log2(max(channels, 2)), 14 + 26 * (max(h, w) / largest) ** 0.5
    y, share = height(level), row["seconds"] / max(total, 1e-12)
    what = html.escape(f"{name}: {h}×{w} places, {channels} channels, {100 * share:.0f} % of the UNet's time, "
                       f"{row['flop'] / 1e9:.2f} GFLOP in all")
    title = html.escape(name.replace("_blocks.", " ").replace("_block", "").replace("_", " "))
    return (f'<g><title>{what}</title><rect x="{x - wide / 2:.0f}" y="{y - tall / 2:.0f}" width="{wide:.0f}" '
            f'height="{tall:.0f}" rx="4" style="--share:{share:.3f}"/><text x="{x:.0f}" y="{y + tall / 2 + 14:.0f}">'
            f'{h}×{w}×{channels}</text><text class="quiet" x="{x:.0f}" y="{y + tall / 2 + 27:.0f}">'
            f'{title}, {100 * share:.0f} %</text></g>')
