"use strict";
// The data: `diff` is the JSON of the comparison, `layout` tells the block, the layer and the place of everything.
const { diff, layout } = JSON.parse(document.getElementById("data").textContent);
const WIDTH = 158, HEIGHT = 34, BLOCK = 46, ACROSS = 178, BETWEEN = 26, PAD = 14, HEAD = 24, CLOSE = 0.85;
const STATES = ["removed", "inserted", "replaced", "changed", "kept"];
const MEANING = {
  removed: "removed", inserted: "inserted", replaced: "replaced", changed: "changed", kept: "the same",
};
const $ = (id) => document.getElementById(id);
const bytes = (n) => {
  for (const unit of ["B", "KiB", "MiB"]) { if (n < 1024) return (unit === "B" || n >= 100 ? Math.round(n) : n.toFixed(1)) + " " + unit; n /= 1024; }
  return n.toFixed(1) + " GiB";
};

function make(tag, content, attributes = {}) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value); else made.setAttribute(name, value);
  }
  made.append(...[content].flat().filter((part) => part !== null && part !== undefined));
  return made;
}

// ---- the two graphs -------------------------------------------------------------------------------------------------

const edits = diff.edits;
const byName = [new Map(), new Map()];
const sides = [diff.before, diff.after].map((model, side) => {
  const places = layout.sides[side];
  const nodes = model.nodes.map((view, i) => {
    const node = { side, view, home: places.homes[i], at: places.nodes[i], edit: null, partners: [], state: "kept", into: [], out: [] };
    byName[side].set(view.name, node);
    return node;
  });
  const makers = new Map(), readers = new Map();
  for (const node of nodes) for (const name of node.view.outputs) if (name) makers.set(name, node);
  for (const node of nodes) for (const name of new Set([...node.view.inputs, ...node.view.captured])) {
    if (!name) continue;
    if (!readers.has(name)) readers.set(name, []);
    readers.get(name).push(node);
    const maker = makers.get(name);
    if (maker) { maker.out.push(node); node.into.push(maker); }
  }
  const blocks = layout.blocks.map((view, i) => places.blocks[i] || i === 0
    ? { side, number: i, view, at: places.blocks[i] || [0, 0], parent: view.parent, nodes: [], blocks: [], count: {}, size: 0 } : null);
  for (const block of blocks) if (block && block.parent >= 0) blocks[block.parent].blocks.push(block);
  for (const node of nodes) blocks[node.home].nodes.push(node);
  return { side, model, nodes, blocks, makers, readers, view: { x: 0, y: 0, k: 1 }, boxes: [], links: [], canvas: $("side" + side) };
});
edits.forEach((edit) => {
  const before = edit.before.map((name) => byName[0].get(name)), after = edit.after.map((name) => byName[1].get(name));
  for (const node of before) Object.assign(node, { edit, partners: after, state: edit.kind });
  for (const node of after) Object.assign(node, { edit, partners: before, state: edit.kind });
});
for (const [one, other] of diff.kept) {
  const a = byName[0].get(one), b = byName[1].get(other);
  a.partners = [b]; b.partners = [a];
}
for (const side of sides) for (const node of side.nodes) {
  for (let i = node.home; i >= 0; i = layout.blocks[i].parent) {
    const block = side.blocks[i];
    block.size += 1;
    block.count[node.state] = (block.count[node.state] || 0) + 1;
  }
}

// ---- folding, and where everything goes ------------------------------------------------------------------------------

const open = new Set([0]);
let selected = null;

function measure(side, block) {
  // the layers of a block below each other; within a layer, what is wide moves its neighbours aside
  const items = [];
  for (const node of block.nodes) items.push({ node, w: WIDTH, h: HEIGHT, at: node.at });
  for (const inner of block.blocks) {
    if (open.has(inner.number)) {
      const size = measure(side, inner);
      items.push({ block: inner, w: size.w, h: size.h, at: inner.at, inner: size.items });
    } else items.push({ block: inner, w: WIDTH + 40, h: BLOCK, at: inner.at });
  }
  const rows = new Map();
  for (const item of items) {
    if (!rows.has(item.at[1])) rows.set(item.at[1], []);
    rows.get(item.at[1]).push(item);
  }
  let y = block.number ? HEAD + PAD : 0, low = Infinity, high = -Infinity;
  for (const layer of [...rows.keys()].sort((a, b) => a - b)) {
    const row = rows.get(layer).sort((a, b) => a.at[0] - b.at[0]);
    let edge = -Infinity, shift = 0;
    for (const item of row) {
      const wish = item.at[0] * ACROSS;
      item.x = Math.max(wish - item.w / 2, edge);
      edge = item.x + item.w + BETWEEN - 6;
      shift += wish - item.w / 2 - item.x;
    }
    const tall = Math.max(...row.map((item) => item.h));
    for (const item of row) {
      item.x += shift / row.length;
      item.y = y + (tall - item.h) / 2;
      low = Math.min(low, item.x); high = Math.max(high, item.x + item.w);
    }
    y += tall + BETWEEN;
  }
  if (!items.length) low = high = 0;
  const left = block.number ? PAD : 0, least = block.number ? WIDTH : 0;
  const spare = Math.max(0, least - (high - low)) / 2;
  for (const item of items) item.x += left + spare - low;
  return { items, w: high - low + 2 * (left + spare), h: y - BETWEEN + (block.number ? PAD : 0) };
}

function arrange(side) {
  const size = measure(side, side.blocks[0]);
  side.boxes = []; side.size = size;
  const place = (items, x, y, depth) => {
    for (const item of items) {
      const box = { x: x + item.x, y: y + item.y, w: item.w, h: item.h, node: item.node, block: item.block, open: !!item.inner, depth };
      (item.node || item.block).box = box;
      side.boxes.push(box);
      if (item.inner) place(item.inner, box.x, box.y, depth + 1);
    }
  };
  place(size.items, 0, 0, 0);
  const seen = new Map(); // a folded block stands for everything in it
  side.links = [];
  for (const node of side.nodes) {
    const from = shown(side, node);
    for (const reader of node.out) {
      const to = shown(side, reader);
      if (from === to) continue;
      const key = from.id + " " + to.id, known = seen.get(key);
      if (known) { known.count += 1; continue; }
      const link = { from: from.box, to: to.box, count: 1, a: from, b: to };
      seen.set(key, link); side.links.push(link);
    }
  }
}

let ids = 0;
for (const side of sides) { for (const node of side.nodes) node.id = ids++; for (const block of side.blocks) if (block) block.id = ids++; }

function shown(side, node) {
  let outer = node;
  for (let i = node.home; i > 0; i = layout.blocks[i].parent) if (!open.has(i)) outer = side.blocks[i];
  return outer;
}

function rearrange(anchor) {
  // what was clicked stays under the finger
  const before = anchor && anchor.box ? { x: anchor.box.x, y: anchor.box.y } : null;
  for (const side of sides) arrange(side);
  if (before && anchor.box) {
    const { view } = sides[anchor.side];
    view.x -= (anchor.box.x - before.x) * view.k; view.y -= (anchor.box.y - before.y) * view.k;
  }
  redraw();
}

// ---- drawing ----------------------------------------------------------------------------------------------------------

let colors = {};
function readColors() {
  const probe = make("span", []), found = {};
  document.body.append(probe);
  for (const name of ["paper", "card", "ink", "faint", "line", "edge", "accent", "block", ...STATES, ...STATES.map((state) => state + "-far")]) {
    probe.style.color = `var(--${name})`;
    found[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  colors = found;
}

let waiting = false;
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; sides.forEach(draw); });
}

function draw(side) {
  const { canvas, view } = side, ratio = window.devicePixelRatio || 1;
  const w = canvas.clientWidth, h = canvas.clientHeight;
  if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
    canvas.width = Math.round(w * ratio); canvas.height = Math.round(h * ratio);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, w, h);
  pen.setTransform(ratio * view.k, 0, 0, ratio * view.k, ratio * view.x, ratio * view.y);
  const near = { x0: -view.x / view.k, y0: -view.y / view.k, x1: (w - view.x) / view.k, y1: (h - view.y) / view.k };
  const visible = (b) => b.x < near.x1 && b.x + b.w > near.x0 && b.y < near.y1 && b.y + b.h > near.y0;
  const boxes = side.boxes.filter(visible);
  for (const box of boxes) if (box.open) drawOpen(pen, box, view.k);
  drawLinks(pen, side, near, view.k);
  pen.textBaseline = "middle";
  for (const box of boxes) if (!box.open) (box.node ? drawNode : drawBlock)(pen, box, view.k);
}

function drawLinks(pen, side, near, k) {
  const chosen = selected && new Set([selected, ...selected.partners].filter((n) => n.side === side.side).map((n) => shown(side, n)));
  const bright = [];
  pen.lineWidth = Math.max(1, 0.7 / k); pen.strokeStyle = colors.edge; pen.globalAlpha = k < 0.12 ? 0.45 : 0.8;
  pen.beginPath();
  for (const link of side.links) {
    const { from, to } = link;
    const x1 = from.x + from.w / 2, y1 = from.y + from.h, x2 = to.x + to.w / 2, y2 = to.y;
    const slack = y2 < y1 ? 60 : 0;
    if (Math.max(x1, x2) + slack < near.x0 || Math.min(x1, x2) - slack > near.x1 || Math.max(y1, y2) + slack < near.y0 || Math.min(y1, y2) - slack > near.y1) continue;
    if (chosen && (chosen.has(link.a) || chosen.has(link.b))) { bright.push([x1, y1, x2, y2]); continue; }
    curve(pen, x1, y1, x2, y2);
  }
  pen.stroke();
  pen.globalAlpha = 1;
  if (bright.length) {
    pen.beginPath(); pen.strokeStyle = colors.accent; pen.lineWidth = Math.max(1.6, 1.2 / k);
    for (const ends of bright) curve(pen, ...ends);
    pen.stroke();
  }
  if (k > 0.35) {
    pen.beginPath(); pen.fillStyle = colors.edge;
    for (const { to } of side.links) {
      const x = to.x + to.w / 2;
      if (x < near.x0 || x > near.x1 || to.y < near.y0 || to.y > near.y1) continue;
      pen.moveTo(x, to.y); pen.lineTo(x - 3.5, to.y - 6); pen.lineTo(x + 3.5, to.y - 6);
    }
    pen.fill();
  }
}

function curve(pen, x1, y1, x2, y2) {
  const bend = Math.max(12, Math.min(60, Math.abs(y2 - y1) / 2));
  pen.moveTo(x1, y1); pen.bezierCurveTo(x1, y1 + bend, x2, y2 - bend, x2, y2);
}

function plate(pen, box, radius) { pen.beginPath(); pen.roundRect(box.x, box.y, box.w, box.h, radius); }

function drawOpen(pen, box, k) {
  plate(pen, box, 8);
  pen.fillStyle = colors.block; pen.fill();
  pen.strokeStyle = colors.line; pen.lineWidth = Math.max(1, 1 / k); pen.stroke();
  if (k < 0.3) return;
  pen.fillStyle = colors.faint; pen.font = "600 11px system-ui, sans-serif"; pen.textBaseline = "middle"; pen.textAlign = "left";
  pen.fillText(clip(pen, "− " + box.block.view.label, box.w - 20), box.x + 10, box.y + 14);
}

function outline(pen, box, k, own) {
  const hit = selected && (own === selected || selected.partners.includes(own));
  pen.strokeStyle = hit ? colors.accent : colors.edge;
  pen.lineWidth = hit ? Math.max(2.5, 2 / k) : Math.max(0.8, 0.6 / k);
  if (hit && own !== selected) pen.setLineDash([6, 3]);
  pen.stroke(); pen.setLineDash([]);
}

function drawNode(pen, box, k) {
  const { node } = box;
  pen.fillStyle = colors[node.state];
  if (k < 0.18) { // seen from afar, what is different stays visible
    pen.fillStyle = colors[node.state + "-far"];
    const h = node.state === "kept" ? box.h : Math.max(box.h, 2.5 / k);
    pen.fillRect(box.x, box.y + (box.h - h) / 2, box.w, h);
    if (selected === node || (selected && selected.partners.includes(node))) { plate(pen, box, 5); outline(pen, box, k, node); }
    return;
  }
  plate(pen, box, 5); pen.fill(); outline(pen, box, k, node);
  if (k < 0.34) return;
  pen.textAlign = "center"; pen.fillStyle = colors.ink; pen.font = "600 12px system-ui, sans-serif";
  pen.fillText(clip(pen, node.view.op.replace(/^com\.microsoft\./, ""), WIDTH - 12), box.x + box.w / 2, box.y + 12);
  pen.font = "10px system-ui, sans-serif"; pen.fillStyle = colors.faint;
  if (node.state !== "kept") pen.fillStyle = colors.ink;
  pen.fillText(clip(pen, node.view.name, WIDTH - 12, true), box.x + box.w / 2, box.y + 25);
}

function drawBlock(pen, box, k) {
  const { block } = box;
  plate(pen, box, 8);
  pen.fillStyle = colors.card; pen.fill();
  pen.save(); pen.clip();
  let x = box.x;
  const many = STATES.filter((state) => state !== "kept" && block.count[state]).length;
  for (const state of STATES) {
    if (!block.count[state]) continue;
    const share = state === "kept" ? box.w : 6 + block.count[state] / block.size * (box.w - 6 * many);
    pen.fillStyle = colors[state];
    pen.fillRect(x, box.y + box.h - 9, share, 9);
    x += share;
  }
  pen.restore();
  plate(pen, box, 8); pen.strokeStyle = colors.edge; pen.lineWidth = Math.max(1.1, 0.8 / k); pen.stroke();
  if (k < 0.28) return;
  pen.textAlign = "center"; pen.fillStyle = colors.ink; pen.font = "600 12px system-ui, sans-serif";
  pen.fillText(clip(pen, "+ " + block.view.label, box.w - 14, true), box.x + box.w / 2, box.y + 12);
  const other = block.size - (block.count.kept || 0);
  pen.font = "10px system-ui, sans-serif"; pen.fillStyle = colors.faint;
  pen.fillText(`${block.size} nodes` + (other ? `, ${other} different` : ""), box.x + box.w / 2, box.y + 27);
}

const widths = new Map();
function clip(pen, text, room, tail = false) {
  // names of exporters differ at their end: that is what is kept of them
  const key = pen.font + room + tail + text;
  if (widths.has(key)) return widths.get(key);
  let cut = text;
  if (pen.measureText(text).width > room) {
    let low = 0, high = text.length;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      const part = tail ? "…" + text.slice(-middle) : text.slice(0, middle) + "…";
      if (pen.measureText(part).width <= room) low = middle; else high = middle - 1;
    }
    cut = tail ? "…" + (low ? text.slice(-low) : "") : text.slice(0, low) + "…";
  }
  if (widths.size > 50000) widths.clear();
  widths.set(key, cut);
  return cut;
}

// ---- moving about -----------------------------------------------------------------------------------------------------

function fit(side) {
  const { canvas, size, view } = side;
  const w = canvas.clientWidth, h = canvas.clientHeight - 34;
  view.k = Math.min(1.1, Math.max(0.004, Math.min((w - 24) / Math.max(size.w, 1), (h - 24) / Math.max(size.h, 1))));
  view.x = (w - size.w * view.k) / 2; view.y = 34 + Math.max(8, (h - size.h * view.k) / 2);
}

function begin(side) {
  // tall graphs start at their top, at a size that can be read
  fit(side);
  const { canvas, size, view } = side, wide = (canvas.clientWidth - 24) / Math.max(size.w, 1);
  if (view.k < 0.55) {
    view.k = Math.min(0.9, Math.max(0.4, wide));
    view.x = (canvas.clientWidth - size.w * view.k) / 2; view.y = 44;
    const first = side.boxes.reduce((a, b) => (!a || b.y < a.y ? b : a), null);
    if (first && size.w * view.k > canvas.clientWidth) view.x = canvas.clientWidth / 2 - (first.x + first.w / 2) * view.k;
  }
}

function center(side, box, closer = true) {
  const { view, canvas } = side;
  if (closer && view.k < CLOSE) view.k = CLOSE;
  view.x = canvas.clientWidth / 2 - (box.x + box.w / 2) * view.k;
  view.y = canvas.clientHeight / 2 - (box.y + box.h / 2) * view.k;
}

function zoom(side, factor, x, y) {
  const { view } = side, k = Math.min(4, Math.max(0.004, view.k * factor));
  view.x = x - (x - view.x) * k / view.k; view.y = y - (y - view.y) * k / view.k; view.k = k;
  redraw();
}

function hit(side, x, y) {
  const gx = (x - side.view.x) / side.view.k, gy = (y - side.view.y) / side.view.k;
  let best = null;
  for (const box of side.boxes) {
    if (gx >= box.x && gx <= box.x + box.w && gy >= box.y && gy <= box.y + box.h && (!best || box.depth >= best.depth)) best = box;
  }
  return best;
}

function listen(side) {
  const { canvas, view } = side, fingers = new Map();
  let moved = 0, spread = 0;
  const at = (event) => { const r = canvas.getBoundingClientRect(); return [event.clientX - r.left, event.clientY - r.top]; };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, at(event));
    if (fingers.size === 1) moved = 0;
    spread = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const last = fingers.get(event.pointerId), now = at(event);
    if (!last) { const box = hit(side, ...now); canvas.style.cursor = box ? "pointer" : "grab"; return; }
    fingers.set(event.pointerId, now);
    const all = [...fingers.values()];
    if (all.length === 1) { view.x += now[0] - last[0]; view.y += now[1] - last[1]; moved += Math.abs(now[0] - last[0]) + Math.abs(now[1] - last[1]); redraw(); return; }
    const wide = Math.hypot(all[0][0] - all[1][0], all[0][1] - all[1][1]);
    if (spread) zoom(side, wide / spread, (all[0][0] + all[1][0]) / 2, (all[0][1] + all[1][1]) / 2);
    spread = wide; moved = 99;
  });
  canvas.addEventListener("pointerup", (event) => { if (fingers.delete(event.pointerId) && moved < 6) click(side, ...at(event)); spread = 0; });
  canvas.addEventListener("pointercancel", (event) => { fingers.delete(event.pointerId); spread = 0; });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const step = event.deltaMode ? event.deltaY * 20 : event.deltaY;
    zoom(side, Math.exp(-Math.max(-120, Math.min(120, step)) / 300), ...at(event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
    if (moves) { view.x += moves[0]; view.y += moves[1]; redraw(); event.preventDefault(); }
    if (event.key === "+" || event.key === "-") zoom(side, event.key === "+" ? 1.25 : 0.8, canvas.clientWidth / 2, canvas.clientHeight / 2);
  });
}

function click(side, x, y) {
  const box = hit(side, x, y);
  if (!box) return select(null);
  if (box.node) return select(box.node);
  if (box.open && y - (box.y * side.view.k + side.view.y) > HEAD * side.view.k) return select(null);
  if (box.open) open.delete(box.block.number); else open.add(box.block.number);
  rearrange(box.block);
}

// ---- what is selected -------------------------------------------------------------------------------------------------

function unfoldTo(node) {
  let changed = false;
  for (let i = node.home; i > 0; i = layout.blocks[i].parent) if (!open.has(i)) { open.add(i); changed = true; }
  return changed;
}

function select(node, jump = false) {
  selected = node;
  if (!node) { overview(); redraw(); return; }
  let changed = jump && unfoldTo(node);
  const partner = node.partners[0];
  if (partner && jump) changed = unfoldTo(partner) || changed;
  if (changed) for (const side of sides) arrange(side);
  if (jump) center(sides[node.side], shown(sides[node.side], node).box);
  const beside = partner || beyond(node);
  if (beside) center(sides[beside.side], shown(sides[beside.side], beside).box, jump);
  details(node);
  redraw();
}

function beyond(node) {
  // where a node without a partner would be: beside the next one before it that has one
  const seen = new Set([node]), queue = [node];
  for (let i = 0; i < queue.length && i < 200; i++) {
    for (const near of [...queue[i].into, ...queue[i].out]) {
      if (near.partners.length) return near.partners[0];
      if (!seen.has(near)) { seen.add(near); queue.push(near); }
    }
  }
  return null;
}

const link = (node, text) => make("button", text || node.view.name, { class: "link", onclick: () => select(node, true) });
const rows = (pairs) => make("table", make("tbody", pairs.map((pair) => make("tr", pair.map((cell) => make("td", cell))))));
const heading = (text) => make("h4", text);
const state = (name) => make("span", [make("i", [], { style: `background: var(--${name})` }), MEANING[name]], { class: "state" });

function tensor(side, name) {
  const view = side.model.tensors[name], maker = side.makers.get(name);
  const said = [make("code", name || "(left out)")];
  if (view && view.type) said.push(" ", make("span", view.type, { class: "faint" }));
  if (view && view.bytes) said.push(" ", make("span", bytes(view.bytes) + (view.value ? " = " + view.value : ""), { class: "faint" }));
  if (maker) said.push(" from ", link(maker));
  return said;
}

function details(node) {
  const side = sides[node.side], { view, edit } = node, parts = [];
  parts.push(make("button", "Close", { class: "close", onclick: () => select(null) }));
  parts.push(make("h3", view.op), make("p", make("code", view.name)));
  parts.push(make("p", [state(node.state), make("span", `, in ${side.model.name}` + (edit && edit.precision ? ", precision differs" : ""), { class: "faint" })]));
  if (edit) {
    const list = (names, where, mark, look) => names.map((name) => make("li", [make("span", mark + " ", { class: look }), byName[where].get(name).view.op, " ", link(byName[where].get(name))]));
    parts.push(heading("What happened" + (edit.matched_by ? ` (matched by ${edit.matched_by})` : "")));
    parts.push(make("ul", [...list(edit.before, 0, "−", "gone"), ...list(edit.after, 1, "+", "came")]));
    if (edit.details.length) parts.push(make("ul", edit.details.map((detail) => make("li", described(detail)))));
    if (edit.bytes_before || edit.bytes_after) parts.push(make("p", `Weights: ${bytes(edit.bytes_before)} → ${bytes(edit.bytes_after)}`, { class: "faint" }));
  } else if (node.partners.length) parts.push(make("p", ["The same as ", link(node.partners[0]), ` in ${sides[1 - node.side].model.name}`]));
  const grids = Object.entries(view.grids);
  if (grids.length) parts.push(heading("Scales"), rows(grids));
  const attributes = Object.entries(view.attributes);
  if (attributes.length) parts.push(heading("Attributes"), rows(attributes));
  parts.push(heading("Inputs"), make("ul", view.inputs.map((name) => make("li", tensor(side, name)))));
  if (view.captured.length) parts.push(heading("Read by its bodies"), make("ul", view.captured.map((name) => make("li", tensor(side, name)))));
  parts.push(heading("Outputs"));
  parts.push(make("ul", view.outputs.map((name) => {
    const type = (side.model.tensors[name] || {}).type, readers = side.readers.get(name) || [];
    const said = [make("code", name || "(left out)"), type ? make("span", " " + type, { class: "faint" }) : null];
    if (readers.length) said.push(" to ");
    readers.slice(0, 20).forEach((reader, i) => said.push(i ? ", " : "", link(reader)));
    if (readers.length > 20) said.push(` and ${readers.length - 20} more`);
    return make("li", said);
  })));
  if (view.bytes) parts.push(make("p", `Weights of this node: ${bytes(view.bytes)}`, { class: "faint" }));
  $("details").replaceChildren(...parts);
  $("details").scrollTop = 0;
}

function described(detail) {
  const what = { requantized: "scale of ", attributes: "", weights: "", retyped: "type of ", rewired: "wiring of " }[detail.aspect] + detail.name;
  const said = [make("span", detail.before || "none", { class: "gone" }), " → ", make("span", detail.after || "none", { class: "came" })];
  if (detail.max_difference !== null) said.push(` (differs by ${Number(detail.max_difference).toPrecision(3)} at most)`);
  return [make("div", what, { class: "faint" }), make("code", said)];
}

function overview() {
  const { before, after, counts } = diff, parts = [make("h3", "Differences")];
  parts.push(rows([
    ["nodes", `${before.nodes.length} → ${after.nodes.length}`],
    ["weights", `${bytes(before.weight_bytes)} → ${bytes(after.weight_bytes)}`],
    ...Object.entries(counts).filter(([, count]) => count).map(([name, count]) => [MEANING[name] || name, String(count)]),
  ]));
  parts.push(heading("Interface"));
  if (!diff.interface.length) parts.push(make("p", "The same.", { class: "faint" }));
  else parts.push(rows(diff.interface.map((c) => [`${c.what} ${c.name}`, [make("span", c.before || "none", { class: "gone" }), " → ", make("span", c.after || "none", { class: "came" })]])));
  parts.push(heading("Nodes"));
  if (!edits.length) parts.push(make("p", "All the same.", { class: "faint" }));
  const short = (names, where) => {
    const ops = names.slice(0, 4).map((name) => byName[where].get(name).view.op.replace(/^com\.microsoft\./, ""));
    return ops.join(" + ") + (names.length > 4 ? ` + ${names.length - 4} more` : "");
  };
  const sorts = new Map(); // edits that are alike are listed together
  for (const edit of edits) {
    const about = [...new Set(edit.details.map((detail) => detail.aspect))].sort().join(", ");
    const text = edit.kind === "changed" ? `${short(edit.before, 0)}: ${about}` : [short(edit.before, 0), short(edit.after, 1)].filter(Boolean).join(" → ");
    const key = `${edit.kind} ${text}`;
    if (!sorts.has(key)) sorts.set(key, { kind: edit.kind, text, edits: [] });
    sorts.get(key).edits.push(edit);
  }
  const main = (edit) => edit.before.length ? byName[0].get(edit.before[0]) : byName[1].get(edit.after[0]);
  parts.push(make("ul", [...sorts.values()].slice(0, 300).map(({ kind, text, edits: alike }) => {
    const sign = make("i", [], { style: `background: var(--${kind})`, title: kind }), first = main(alike[0]);
    const said = [link(first, text), make("div", first.view.name, { class: "faint" })];
    if (alike.length > 1) {
      const rest = make("ul", []), more = make("details", [make("summary", `${alike.length - 1} more like this`, { class: "faint" }), rest]);
      more.addEventListener("toggle", () => {
        if (rest.children.length) return;
        rest.append(...alike.slice(1, 401).map((edit) => make("li", link(main(edit)))));
        if (alike.length > 401) rest.append(make("li", `and ${alike.length - 401} more`));
      });
      said.push(more);
    }
    return make("li", [sign, make("div", said)], { class: "entry" });
  })));
  $("details").replaceChildren(...parts);
}

let current = -1;
function step(by) {
  if (!edits.length) return;
  const edit = selected && selected.edit;
  if (edit) current = edits.indexOf(edit);
  current = (current + by + edits.length) % edits.length;
  const next = edits[current];
  select(next.before.length ? byName[0].get(next.before[0]) : byName[1].get(next.after[0]), true);
}

// ---- searching ----------------------------------------------------------------------------------------------------------

let hits = [], mark = 0;
function search() {
  const words = $("query").value.trim().toLowerCase();
  hits = [];
  if (words) {
    const later = [];
    for (const side of sides) for (const node of side.nodes) {
      const { view } = node;
      if (view.name.toLowerCase() === words) hits.unshift({ node, said: "" });
      else if (view.name.toLowerCase().includes(words) || view.op.toLowerCase().includes(words)) hits.push({ node, said: "" });
      else {
        const name = [...view.outputs, ...view.inputs].find((one) => one.toLowerCase().includes(words));
        if (name) later.push({ node, said: name });
      }
    }
    hits = hits.concat(later);
  }
  mark = 0;
  showHits();
}

function showHits() {
  const list = $("hits"), first = Math.max(0, Math.min(mark - 20, hits.length - 40));
  const shownHits = hits.slice(first, first + 40).map(({ node, said }, i) => make("li", [
    state(node.state), " ", make("b", node.view.op), " ", node.view.name, said ? make("span", ` (${said})`, { class: "faint" }) : null, ` · ${node.side ? "after" : "before"}`,
  ], { role: "option", "aria-selected": String(first + i === mark), onpointerdown: (event) => { event.preventDefault(); mark = first + i; jump(true); } }));
  if (hits.length > 40) shownHits.push(make("li", `${hits.length} in all`, { class: "faint" }));
  if (!hits.length && $("query").value.trim()) shownHits.push(make("li", "Nothing of that name."));
  list.replaceChildren(...shownHits);
  list.hidden = !shownHits.length;
  $("query").setAttribute("aria-expanded", String(!list.hidden));
}

function jump(close) {
  if (hits[mark]) select(hits[mark].node, true);
  if (close) { $("hits").hidden = true; $("query").setAttribute("aria-expanded", "false"); } else showHits();
}

// ---- all together ---------------------------------------------------------------------------------------------------------

function setAll(unfolded) {
  open.clear(); open.add(0);
  if (unfolded) layout.blocks.forEach((_, i) => open.add(i));
  for (const side of sides) { arrange(side); if (unfolded) begin(side); else fit(side); }
  redraw();
}

function unfoldLarge() {
  // a block that holds most of the graph says nothing while it is folded
  const whole = Math.max(...sides.map((side) => side.nodes.length));
  layout.blocks.forEach((view, i) => {
    if (open.has(view.parent) && sides.some((side) => side.blocks[i] && side.blocks[i].size > 0.5 * whole)) open.add(i);
  });
}

function start() {
  $("title").append(diff.before.name, " → ", diff.after.name, make("small", edits.length || diff.interface.length ? `${edits.length} differences` : "the same"));
  sides.forEach((side, i) => $("name" + i).append(make("span", [side.model.name, make("small", `${side.nodes.length} nodes, ${bytes(side.model.weight_bytes)}`)])));
  $("legend").append(...STATES.map((name) => state(name)));
  readColors();
  unfoldLarge();
  for (const side of sides) { listen(side); arrange(side); begin(side); }
  overview();
  redraw();
  $("fit").addEventListener("click", () => { sides.forEach(fit); redraw(); });
  $("unfold").addEventListener("click", () => setAll(true));
  $("fold").addEventListener("click", () => setAll(false));
  $("next").addEventListener("click", () => step(1));
  $("previous").addEventListener("click", () => step(-1));
  $("query").addEventListener("input", search);
  $("query").addEventListener("focus", () => { if (hits.length) showHits(); });
  $("query").addEventListener("blur", () => { $("hits").hidden = true; });
  $("query").addEventListener("keydown", (event) => {
    if (event.key === "Enter") { if (selected && hits[mark] && selected === hits[mark].node) mark = (mark + 1) % hits.length; jump(false); }
    if (event.key === "ArrowDown" && hits.length) { mark = (mark + 1) % hits.length; showHits(); event.preventDefault(); }
    if (event.key === "ArrowUp" && hits.length) { mark = (mark - 1 + hits.length) % hits.length; showHits(); event.preventDefault(); }
    if (event.key === "Escape") { $("hits").hidden = true; $("query").blur(); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "n") step(1);
    if (event.key === "p") step(-1);
    if (event.key === "0") { sides.forEach(fit); redraw(); }
    if (event.key === "/") { $("query").focus(); event.preventDefault(); }
    if (event.key === "Escape") select(null);
  });
  new ResizeObserver(redraw).observe($("side0"));
  new ResizeObserver(redraw).observe($("side1"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColors(); redraw(); });
}

start();
