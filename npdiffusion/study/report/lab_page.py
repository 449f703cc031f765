"""The laboratory for samplers as one HTML file: paths of all of them on the toy, and errors over steps, as drawings.

Both axes of the plot of errors are logarithmic, so that order p is a line that falls p times as steeply as order 1.
"""
import html
import math

import numpy as np

from npdiffusion.diffusion.samplers import SAMPLERS
from npdiffusion.pictures.settings_text import model_name
from npdiffusion.study import lab
from npdiffusion.study.report.page import part

PATHS, PATH_STEPS, REACH = 14, 12, 2.4
SIDE, WIDTH, HEIGHT, LEFT, BOTTOM = 220, 820, 380, 60, 40


def lab_page(pipeline=None, prompt="a red apple"):
    """→ the text of an HTML file; pipeline: a model on which samplers are compared as well, or None"""
    names = lab.deterministic()
    found = {name: lab.errors(name) for name in names}
    orders = {name: lab.order(lab.STEPS, errors) for name, errors in found.items()}
    model = ""
    if pipeline is not None:
        of_model = {name: lab.model_errors(pipeline, prompt, name) for name in lab.MODEL_SAMPLERS}
        which = "the embedded model" if pipeline.embedded else html.escape(model_name(str(pipeline.source)))
        model = section("On a real model", f"The same plot for {which} and “{html.escape(prompt)}”: distance of the latents to "
                        f"those of the same sampler in {lab.MODEL_REFERENCE} steps. A model is far from smooth, so order shows "
                        "late, and what few steps give matters most.",
                        plot(lab.MODEL_STEPS, of_model, {}))
    rows = "".join(f"<tr><th scope=row>{html.escape(name)}</th><td>{SAMPLERS[name].order}</td><td>{orders[name]:.2f}</td>"
                   + "".join(f"<td>{error:.1e}</td>" for error in found[name]) + "</tr>" for name in names)
    head = "".join(f"<th scope=col>{count} steps</th>" for count in lab.STEPS)
    table = (f'<div class="scroll"><table class="numbers"><thead><tr><th scope=col>sampler</th><th scope=col>order, as stated'
             f'</th><th scope=col>as measured</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>')
    return "".join([
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>A laboratory for samplers</title><style>{part('style.css')}{part('lab.css')}</style></head><body><main>",
        '<p class="over">Samplers, on a distribution that is known</p><h1>A laboratory for samplers</h1>',
        "<p>Three clouds in the plane stand for all pictures. Their denoiser is known exactly, so every error is the sampler’s "
        "own.</p>",
        section("Paths", f"{PATHS} points each, {PATH_STEPS} steps, from noise to a cloud, on the training's scale. Samplers "
                "that add noise wander; the others follow one flow.",
                '<div class="paths">' + "".join(map(paths, SAMPLERS)) + "</div>"),
        section("Order", "Distance to the exact end of the flow. A line that falls twice as steeply is of order 2: with "
                "twice the steps, a quarter of the error.", plot(lab.STEPS, found, orders) + table),
        model, "</main></body></html>"])


def section(title, text, content):
    return f"<section><h2>{title}</h2><p>{text}</p>{content}</section>"


def paths(name):
    """One sampler's paths as a small drawing"""
    noise = np.random.default_rng(3).standard_normal((PATHS, 2))
    states, plan = lab.walk(name, PATH_STEPS, noise)
    sigmas = [level.sigma / level.alpha for level in plan.levels.values()]
    sizes = np.hypot(1, [*sigmas, *[0.0] * len(states)][:len(states)])
    states = states / sizes[:, None, None]                         # the scale of the training, on which noise has size 1
    at = lambda point: "{:.1f},{:.1f}".format(*((point / REACH * np.array([1, -1]) + 1) * SIDE / 2))
    radius = lab.SPREAD / REACH * SIDE
    clouds = "".join('<circle class="cloud" cx="{}" cy="{}" r="{:.0f}"/>'.format(*at(mean).split(","), radius)
                     for mean in lab.MEANS)
    lines = "".join(f'<polyline points="{" ".join(map(at, way))}"/>' for way in states.swapaxes(0, 1))
    ends = "".join('<circle class="end" cx="{}" cy="{}" r="2.4"/>'.format(*at(point).split(",")) for point in states[-1])
    label = f"{name}: {SAMPLERS[name].description}"
    return (f'<figure><svg viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="{html.escape(label)}"><title>{html.escape(label)}'
            f"</title>{clouds}{lines}{ends}</svg><figcaption><b>{html.escape(name)}</b> {html.escape(SAMPLERS[name].summary)}"
            "</figcaption></figure>")


def plot(steps, errors, orders):
    """Errors over steps, both logarithmic      errors: {name: [error, ...]}"""
    every = [error for row in errors.values() for error in row if error > 0]
    low, high = math.floor(math.log10(min(every))), math.ceil(math.log10(max(every)))
    x = lambda count: LEFT + (WIDTH - LEFT - 150) * math.log(count / steps[0]) / math.log(steps[-1] / steps[0])
    y = lambda error: 12 + (HEIGHT - BOTTOM - 12) * (high - math.log10(error)) / (high - low)
    grid = "".join(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - 150}" y1="{y(10.0**p):.0f}" y2="{y(10.0**p):.0f}"/>'
                   f'<text x="{LEFT - 8}" y="{y(10.0**p) + 4:.0f}" text-anchor="end">1e{p}</text>'
                   for p in range(low, high + 1))
    grid += "".join(f'<text x="{x(count):.0f}" y="{HEIGHT - 18}" text-anchor="middle">{count}</text>' for count in steps)
    ends = sorted(errors, key=lambda name: errors[name][-1])
    places = np.array([y(max(errors[name][-1], 10.0**low)) for name in ends])
    for number in range(len(places) - 2, -1, -1):                  # the smallest errors are at the bottom: move labels apart
        places[number] = max(places[number], places[number + 1] + 14)
    lines = []
    for number, (name, place) in enumerate(zip(ends, places)):
        hue = round(360 * number / len(ends))
        points = " ".join(f"{x(count):.1f},{y(max(error, 10.0**low)):.1f}" for count, error in zip(steps, errors[name]))
        slope = f", order {orders[name]:.1f}" if name in orders else ""
        lines.append(f'<g style="--hue:{hue}"><polyline class="line" points="{points}"/><text class="name" x="{WIDTH - 140}" '
                     f'y="{place + 4:.0f}">{html.escape(name)}{slope}</text></g>')
    return (f'<div class="chart"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="error over steps"><title>error '
            f'over steps, both logarithmic</title>{grid}{"".join(lines)}<text x="{WIDTH - 150}" y="{HEIGHT - 2}" '
            'text-anchor="end">steps</text></svg></div>')
