"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const make = (tag, text, options = {}) => Object.assign(document.createElement(tag), text === undefined ? {} : {textContent: text}, options);
const percent = share => (100 * share).toFixed(share < 0.1 ? 1 : 0) + " %";
const number = x => x === null || x === undefined ? "–" : Math.abs(x) >= 1e-3 && Math.abs(x) < 1e4 ? x.toFixed(4).replace("-", "−") : x === 0 ? "0" : x.toExponential(2).replaceAll("-", "−");
const subscript = n => [...String(n)].map(c => "₀₁₂₃₄₅₆₇₈₉"[c] ?? c).join("");
document.documentElement.style.setProperty("--aspect", data.size[0] / data.size[1]);

// ---- the head of the page, and the tokens
$("prompt").textContent = data.prompt || "(no prompt)";
if (data.negative) { $("negative").hidden = false; $("negative").textContent = "without: " + data.negative; }
$("command").textContent = data.command;
for (const [name, value] of Object.entries({model: data.model, ...data.settings})) {
  const row = make("div");
  row.append(make("dt", name.replaceAll("_", " ")), make("dd", value));
  $("settings").append(row);
}
const largestShare = Math.max(...data.words.map(word => word.share));
for (const word of data.words) {
  const item = make("li"), meter = make("div", undefined, {className: "meter"}), fill = make("i");
  fill.style.width = 100 * word.share / largestShare + "%";
  meter.append(fill);
  const id = word.id === null ? word.kind === "token" ? "learnt" : word.kind : word.id;
  item.append(make("b", word.text), make("small", `${id}${word.weight === 1 ? "" : " · weight " + word.weight.toFixed(2)} · ${percent(word.share)}`), meter);
  $("tokens").append(item);
}

// ---- attention maps: share p is stored as the byte 255 √p
const colours = Array.from({length: 256}, (_, i) => [0, 2, 4].map(at => parseInt(data.colours.substr(6 * i + at, 2), 16)));
const square = Float32Array.from({length: 256}, (_, v) => (v / 255) ** 2);
const count = data.words.length, heads = data.maps.heads, spans = data.maps.spans;
const levels = data.maps.levels.map(level => ({...level, bytes: Uint8Array.from(atob(level.bytes), c => c.charCodeAt(0))}));
const H = levels[0].h, W = levels[0].w;
const tokens = data.words.map((word, i) => word.kind === "token" ? i : -1).filter(i => i >= 0);
const state = {word: [...tokens].sort((a, b) => data.words[b].peak - data.words[a].peak)[0] ?? 0, place: [H >> 1, W >> 1], maps: null};
const option = (select, value, text) => $(select).append(make("option", text, {value}));
option("span", "", "all, averaged");
spans.forEach(([a, b], i) => option("span", i, a === b ? `step ${a}` : `steps ${a} to ${b}`));
option("level", "", "all layers");
levels.forEach((level, i) => option("level", i, `${level.h} × ${level.w}, ${level.layers} layer${level.layers > 1 ? "s" : ""}`));
option("head", "", "all, averaged");
for (let i = 0; i < heads; i++) option("head", i, `head ${i + 1}`);

function allMaps() {                                     // (words, H, W) of what is chosen, every level on the places of the largest
  const sum = new Float32Array(count * H * W);
  const chosen = id => $(id).value === "" ? null : Number($(id).value);
  const [span, only, head] = ["span", "level", "head"].map(chosen);
  let weight = 0;
  levels.forEach((level, number) => { if (only === null || only === number) weight += level.layers; });
  levels.forEach((level, number) => {
    if (only !== null && only !== number) return;
    const {h, w, bytes} = level, plane = h * w, mean = new Float32Array(count * plane);
    let parts = 0;
    for (let s = 0; s < spans.length; s++) for (let i = 0; i < heads; i++) {
      if ((span !== null && s !== span) || (head !== null && i !== head)) continue;
      const start = (s * heads + i) * count * plane;
      for (let j = 0; j < mean.length; j++) mean[j] += square[bytes[start + j]];
      parts++;
    }
    const share = level.layers / weight / parts;
    for (let word = 0; word < count; word++) for (let y = 0; y < H; y++) for (let x = 0; x < W; x++)
      sum[(word * H + y) * W + x] += share * mean[word * plane + Math.min(h - 1, Math.floor((y + .5) * h / H)) * w + Math.min(w - 1, Math.floor((x + .5) * w / W))];
  });
  return sum;
}
function shownMap(word) {                                // a word's map, normalised, and what its largest colour stands for
  const size = H * W, norm = $("norm").value, map = state.maps.slice(word * size, (word + 1) * size);
  if (norm === "words") for (let i = 0; i < size; i++) {
    let all = 0;
    for (const other of tokens) all += state.maps[other * size + i];
    map[i] = tokens.includes(word) && all > 0 ? map[i] / all : 0;
  }
  if (norm === "words") return [map, 1];
  if (norm === "own" || !tokens.includes(word)) return [map, Math.max(...map)];
  return [map, Math.max(...tokens.map(other => Math.max(...state.maps.subarray(other * size, (other + 1) * size))))];
}
function heatCanvas(map, most) {
  const canvas = make("canvas", undefined, {width: W, height: H}), context = canvas.getContext("2d"), image = context.createImageData(W, H);
  map.forEach((value, i) => image.data.set([...colours[Math.min(255, Math.round(255 * value / (most || 1)))], 255], 4 * i));
  context.putImageData(image, 0, 0);
  return canvas;
}
const picture = new Image();
picture.src = document.querySelector("header img").src;
function drawHeat() {
  const canvas = $("heat"), context = canvas.getContext("2d"), [map, most] = shownMap(state.word);
  canvas.width = 640; canvas.height = Math.round(640 * data.size[1] / data.size[0]);
  context.filter = "grayscale(0.85)";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  context.filter = "none";
  context.globalAlpha = $("mix").value / 100;
  context.imageSmoothingQuality = "high";
  context.drawImage(heatCanvas(map, most), 0, 0, canvas.width, canvas.height);
  context.globalAlpha = 1;
  const [y, x] = state.place, cw = canvas.width / W, ch = canvas.height / H;
  context.lineWidth = 3; context.strokeStyle = "rgba(0,0,0,.6)"; context.strokeRect(x * cw, y * ch, cw, ch);
  context.lineWidth = 1.5; context.strokeStyle = "white"; context.strokeRect(x * cw, y * ch, cw, ch);
  canvas.setAttribute("aria-label", `Attention map of ${data.words[state.word].text}; arrow keys move the place`);
  $("most").textContent = percent(most);
  rank();
}
function rank() {
  const [y, x] = state.place, size = H * W, at = y * W + x;
  const shares = data.words.map((word, i) => [word.text, state.maps[i * size + at]]).sort((a, b) => b[1] - a[1]);
  $("place").textContent = `Row ${y + 1} of ${H}, column ${x + 1} of ${W}: ${shares.slice(0, 3).map(([text, share]) => `${text} ${percent(share)}`).join(", ")}`;
  $("ranks").replaceChildren(...shares.slice(0, 10).map(([text, share]) => {
    const item = make("li"), meter = make("div", undefined, {className: "meter"}), fill = make("i");
    fill.style.width = 100 * share / (shares[0][1] || 1) + "%";
    meter.append(fill);
    item.append(make("span", text), meter, make("span", percent(share)));
    return item;
  }));
}
function drawWords() {
  document.querySelectorAll("#choose label").forEach((label, word) => {
    const canvas = label.querySelector("canvas"), context = canvas.getContext("2d"), [map, most] = shownMap(word);
    canvas.width = 96; canvas.height = Math.round(96 * data.size[1] / data.size[0]);
    context.drawImage(heatCanvas(map, most), 0, 0, canvas.width, canvas.height);
  });
}
function redraw() { state.maps = allMaps(); drawWords(); drawHeat(); }
data.words.forEach((word, i) => {
  const label = make("label"), radio = make("input", undefined, {type: "radio", name: "word", value: i, checked: i === state.word});
  radio.addEventListener("change", () => { state.word = i; drawHeat(); });
  label.append(radio, make("canvas"), document.createTextNode(word.text));
  $("choose").append(label);
});
for (const id of ["span", "level", "head", "norm"]) $(id).addEventListener("change", redraw);
$("mix").addEventListener("input", drawHeat);
function move(y, x) { state.place = [Math.min(H - 1, Math.max(0, y)), Math.min(W - 1, Math.max(0, x))]; drawHeat(); }
$("heat").addEventListener("pointermove", event => {
  const box = $("heat").getBoundingClientRect();
  move(Math.floor((event.clientY - box.top) / box.height * H), Math.floor((event.clientX - box.left) / box.width * W));
});
$("heat").addEventListener("keydown", event => {
  const way = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
  if (way) { event.preventDefault(); move(state.place[0] + way[0], state.place[1] + way[1]); }
});
const bar = $("scale").getContext("2d");
colours.forEach((colour, i) => { bar.fillStyle = `rgb(${colour})`; bar.fillRect(i, 0, 1, 1); });
picture.decode().then(redraw, redraw);

// ---- charts
const svg = (tag, attributes, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
};
function chart(into, title, xs, series, {xLabel, yLabel, logarithmic = false, dots = null, at}) {
  const width = 720, height = 230, left = 56, bottom = 34, root = svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title});
  root.append(svg("title", {}, title));
  const f = logarithmic ? Math.log10 : v => v, all = series.flatMap(one => one.ys).filter(v => v !== null && v !== undefined && (!logarithmic || v > 0));
  const low = logarithmic ? f(Math.min(...all)) : Math.min(0, ...all), high = f(Math.max(...all)), x0 = Math.min(...xs), x1 = Math.max(...xs);
  const px = x => left + (width - left - 12) * (x - x0) / (x1 - x0 || 1), py = y => 10 + (height - bottom - 10) * (1 - (f(y) - low) / (high - low || 1));
  for (let i = 0; i <= 4; i++) {
    const value = low + (high - low) * i / 4, shown = logarithmic ? 10 ** value : value, y = py(shown);
    root.append(svg("line", {class: "axis", x1: left, x2: width - 12, y1: y, y2: y}), svg("text", {x: left - 8, y: y + 4, "text-anchor": "end"}, Number(shown.toPrecision(2))));
  }
  for (const x of new Set([0, 1, 2, 3, 4].map(i => Math.round(x0 + (x1 - x0) * i / 4)))) root.append(svg("text", {class: "tick", x: px(x), y: height - 16, "text-anchor": "middle"}, x));
  root.append(svg("text", {x: width - 12, y: height - 2, "text-anchor": "end"}, xLabel), svg("text", {x: left, y: 6}, yLabel));
  for (const one of series) root.append(svg("polyline", {class: one.name, points: xs.map((x, i) => one.ys[i] === null || one.ys[i] === undefined || (logarithmic && !(one.ys[i] > 0)) ? "" : `${px(x)},${py(one.ys[i])}`).join(" ")}));
  const circles = (dots || []).map(([x, y]) => svg("circle", {cx: px(x), cy: py(y), r: 3}));
  const line = svg("line", {class: "now", y1: 10, y2: height - bottom});
  root.append(line, ...circles);
  into.append(root);
  if (series.length > 1) {
    const legend = make("div", undefined, {className: "legend"});
    for (const one of series) { const item = make("span"), mark = make("i", undefined, {className: one.name}); mark.style.borderColor = "currentColor"; item.append(mark, one.title); item.className = one.name; legend.append(item); }
    into.append(legend);
  }
  return step => { const x = px(at(step)); line.setAttribute("x1", x); line.setAttribute("x2", x); circles.forEach((circle, i) => { circle.setAttribute("r", i === step ? 5.5 : 3); circle.classList.toggle("on", i === step); }); };
}

// ---- the steps: one slider moves them all
const steps = data.steps, shown = steps.map((step, i) => step.x_picture ? i : -1).filter(i => i >= 0), kind = data.kind, guided = steps[0].without !== undefined;
$("step").max = shown.length - 1;
$("guidance-text").textContent = guided
  ? `The UNet predicts ${kind} twice: without the prompt, ${kind}(∅), and with it, ${kind}(c). Guidance goes ${data.guidance} times as far as their difference: ${kind}̂ = ${kind}(∅) + ${data.guidance} (${kind}(c) − ${kind}(∅)).`
  : `Without guidance the UNet predicts ${kind} once a step, with the prompt.`;
const xs = steps.map((_, i) => i + 1), column = name => steps.map(step => step[name]);
const moveNorms = chart($("norms"), "Root mean square of the predictions over the steps", xs, guided
  ? [{name: "s0", title: `${kind}(∅)`, ys: column("without")}, {name: "s1", title: `${kind}(c)`, ys: column("given")}, {name: "s2", title: `${kind}(c) − ${kind}(∅)`, ys: column("added")}]
  : [{name: "s1", title: `${kind}(c)`, ys: column("given")}], {xLabel: "step", yLabel: "root mean square", at: i => i + 1});
const ratio = step => step.sigma / step.alpha;
const moveSchedule = chart($("schedule"), "Noise over the time of the training, with the steps of the sampler", data.schedule.t, [{name: "s0", title: "σ", ys: data.schedule.sigma}],
  {xLabel: "time step of the training", yLabel: "σ", logarithmic: true, dots: steps.map(step => [step.t, ratio(step)]), at: i => steps[i].t});
const buttons = shown.map((i, place) => {
  const button = make("button", undefined, {type: "button", title: `step ${steps[i].step}`});
  button.append(Object.assign(new Image(), {src: steps[i].x0_picture, alt: `x̂₀ in step ${steps[i].step}`}));
  button.addEventListener("click", () => { $("step").value = place; go(); });
  $("strip").append(button);
  return button;
});
if (!guided) for (const id of ["without-picture", "added-picture"]) $(id).closest("figure").remove();
$("equation").textContent = data.equation.join("\n");
const names = {x: n => `x${subscript(n)}`, D: n => `x̂₀ of call ${n + 1}`, z: n => `noise ${n + 1}`};
function sum(i) {
  const row = data.sums[i], into = $("sum");
  into.replaceChildren();
  if (!row) return;
  const sign = factor => factor < 0 ? "−" : "+", size = factor => number(Math.abs(factor));
  const formula = row.terms.map(([kind, n, factor], place) => `${place || factor < 0 ? ` ${sign(factor)} ` : ""}${size(factor)} ${names[kind](n)}`).join("");
  into.append(make("div", `x${subscript(steps[i].step)}  ←  ${formula.trim()}`, {className: "formula"}));
  if (row.example) {
    const table = make("table");
    row.terms.forEach(([kind, n, factor], place) => { if (kind === "z") return;
      const line = table.insertRow(); line.insertCell().textContent = names[kind](n); line.insertCell().textContent = `${number(factor)} × ${number(row.example[place])}`;
      line.insertCell().textContent = `= ${number(factor * row.example[place])}`; });
    const total = table.insertRow(); total.className = "total"; total.insertCell().textContent = row.noise ? "the sum, before noise" : "the sum";
    total.insertCell(); total.insertCell().textContent = `= ${number(row.terms.reduce((all, [kind, , factor], place) => kind === "z" ? all : all + factor * row.example[place], 0))}`;
    const code = table.insertRow(); code.insertCell().textContent = "what the code has"; code.insertCell(); code.insertCell().textContent = `= ${number(row.result)}`;
    into.append(table);
  }
  into.append(make("p", row.difference !== null ? `Over all places and channels the largest difference is ${row.difference.toExponential(1)}.`
    : row.rest !== null ? `Noise of size ${number(row.noise)} was added; what is left after the sum has ${row.rest.toFixed(3)} times that deviation.` : "States of this step weren't kept, so nothing is compared.", {className: "quiet"}));
}
function go() {
  const i = shown[Number($("step").value)], step = steps[i];
  $("step-number").textContent = `${step.step} of ${steps.length}`;
  $("step").setAttribute("aria-valuetext", `step ${step.step} of ${steps.length}, σ ${ratio(step).toFixed(2)}`);
  $("x").src = step.x_picture; $("x").alt = `the state before step ${step.step}`;
  $("x0").src = step.x0_picture; $("x0").alt = `the estimate of the picture in step ${step.step}`;
  $("given-picture").src = step.given_picture; $("given-picture").alt = "prediction with the prompt";
  $("c-given").textContent = `${kind}(c), with the prompt: ${step.given.toFixed(3)}`;
  if (guided) {
    $("without-picture").src = step.without_picture; $("without-picture").alt = "prediction without the prompt";
    $("added-picture").src = step.added_picture; $("added-picture").alt = "what the prompt adds";
    $("c-without").textContent = `${kind}(∅), without it: ${step.without.toFixed(3)}`;
    $("c-added").textContent = `their difference: ${step.added.toFixed(3)}, cosine to ${kind}(∅) ${step.cosine.toFixed(2).replace("-", "−")}`;
  }
  buttons.forEach((button, place) => button.setAttribute("aria-current", place === Number($("step").value)));
  moveNorms(i); moveSchedule(i); sum(i);
}
$("step").addEventListener("input", go);
go();

// ---- each word left out
if (!data.without.length) $("s-without").remove();
for (const one of [...data.without].sort((a, b) => b.change - a.change)) {
  const figure = make("figure"), pair = make("div", undefined, {className: "two"}), caption = make("figcaption");
  pair.append(Object.assign(new Image(), {src: one.picture, alt: `the picture without ${one.word}`}), Object.assign(new Image(), {src: one.where, alt: `where it changes without ${one.word}`}));
  caption.append(make("s", one.word), document.createTextNode(` changes ${one.change.toFixed(1)} of 255 levels`));
  figure.append(pair, caption);
  $("without").append(figure);
}

// ---- the table of layers, folded like the model's tree
const tree = {children: new Map()};
for (const layer of data.layers) {
  let node = tree;
  for (const name of layer.name.split(".")) {
    if (!node.children.has(name)) node.children.set(name, {name, children: new Map(), layer: null});
    node = node.children.get(name);
  }
  node.layer = layer;
}
function total(node, of) { return (node.layer ? of(node.layer) : 0) + [...node.children.values()].reduce((all, child) => all + total(child, of), 0); }
function rows(node, depth) {
  return [...node.children.values()].map(child => {
    const line = make("tr"), head = make("th", undefined, {scope: "row"}), folds = child.children.size > 0, layer = child.layer;
    line.setAttribute("aria-level", depth);
    head.style.paddingLeft = `${0.5 + 1.1 * (depth - 1)}rem`;
    if (folds) head.append(make("button", child.name, {type: "button"})); else head.textContent = child.name;
    line.append(head);
    const ms = total(child, each => each.ms * each.calls), gflop = total(child, each => each.gflop * each.calls);
    const shape = sides => sides.length ? sides.join("×") : "1";
    const cells = layer ? [shape(layer.in), shape(layer.out), layer.calls, layer.gflop.toFixed(3), layer.ms.toFixed(2), layer.mean.toFixed(3), layer.deviation.toFixed(3), layer.largest.toFixed(2)]
      : ["", "", "", `${gflop.toFixed(2)} in all`, `${ms.toFixed(1)} in all`, "", "", ""];
    cells.forEach(text => line.append(make("td", text)));
    if (folds) {
      line.setAttribute("aria-expanded", "false");
      let below = null;
      head.firstChild.addEventListener("click", () => {
        const open = line.getAttribute("aria-expanded") === "true";
        if (!below) { below = rows(child, depth + 1); line.after(...below); }
        else if (open) below.forEach(fold); else below.forEach(each => { each.hidden = false; });
        line.setAttribute("aria-expanded", String(!open));
      });
      line.fold = () => { if (below) below.forEach(fold); line.setAttribute("aria-expanded", "false"); };
    }
    return line;
  });
}
function fold(line) { line.hidden = true; if (line.fold) line.fold(); }
$("layers").tBodies[0].append(...rows(tree, 1));

// ---- checks
for (const check of data.checks) {
  const item = make("li", undefined, {className: check.fine ? "fine" : "wrong"});
  item.append(make("b", check.fine ? "✓ holds" : "✗ fails"), document.createTextNode(`${check.what}: ${check.value}${check.limit ? `, at most ${check.limit}` : ""}`));
  $("checks").append(item);
}
for (const note of data.notes) $("notes").append(make("li", note));
