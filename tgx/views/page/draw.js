// Drawing a picture of boxes and arrows as SVG. Shape is kind, fill is tone; a legend says both.

const SHAPE_WORDS = { kernel: "kernel", graph: "several", copy: "copy", view: "view, no work",
  custom: "custom kernel", buffer: "buffer", arithmetic: "arithmetic", reduce: "reduce",
  memory: "memory", movement: "movement", control: "control", index: "index arithmetic" };
const TONE_WORDS = { forward: "forward", backward: "backward", optimizer: "optimizer",
  data: "data movement", "cost-0": "< 2 % of the time", "cost-1": "2–5 %", "cost-2": "5–10 %",
  "cost-3": "10–25 %", "cost-4": "> 25 %", "bound-memory": "bound by memory",
  "bound-compute": "by arithmetic", "bound-launch": "by the launch", "bound-unknown": "not measured" };
const MARK_WORDS = { added: "new", removed: "gone", chosen: "selected" };

const measure = document.createElement("canvas").getContext("2d");
function textWidth(text, px, bold) {
  measure.font = `${bold ? "600 " : ""}${px}px system-ui, sans-serif`;
  return measure.measureText(text).width;
}

// boxes: {key, title, small: [..], kind, tone, mark, tip, share, dim, open(), go()}; in lanes also
// {lane, anchors, foot: [{text, tip, go()}]}
// edges: {a, b: indices, label: [..], tip, kind, mark, go()}
function drawing(boxes, edges, { labels = true, name = "", lanes = false } = {}) {
  for (const b of boxes) {
    b.title = short(b.title, lanes && b.kind === "graph" ? 32 : 42);
    b.small = (b.small ?? []).filter(Boolean).map((s) => short(s, 44));
    const pad = { control: 26, reduce: 34, movement: 34, copy: 30, index: 34 }[b.kind] ?? 20;
    b.w = Math.max(textWidth(b.title, 13, true), ...b.small.map((s) => textWidth(s, 11)), 40) + pad;
    b.h = 22 + 14 * b.small.length + (b.share === undefined ? 2 : 9);
    if (b.kind === "memory" || b.kind === "buffer") b.h += 8;
  }
  for (const e of edges) {
    const text = labels && !lanes && edges.filter((e) => e.label?.length).length <= 90 ? (e.label ?? []).filter(Boolean) : [];
    e.text = text.map((t) => short(t, 34));
    e.lw = text.length ? Math.max(...e.text.map((t) => textWidth(t, 10.5))) + 8 : 0;
    e.lh = text.length * 13;
  }
  const size = lanes ? layoutLanes(boxes, edges) : layout(boxes, edges);
  const margin = 14;
  const w = size.w + 2 * margin, h = size.h + 2 * margin;
  const root = svg("svg", { viewBox: `${-margin} ${-margin} ${w} ${h}`, width: w, height: h, role: "img",
    "aria-label": name }, svg("defs", {}, arrowHead("arrow", "edge"), arrowHead("arrow-b", "edge boundary")));
  for (const l of size.lanes ?? []) root.append(svg("rect", { class: "lane", x: l.x - 12, y: -6, width: l.w + 24, height: size.h + 12, rx: 8 }),
    svg("text", { class: "lane-title", x: l.x + l.w / 2, y: 10 }, l.title));
  // what is selected lies on top
  for (const e of [...edges].sort((a, b) => (a.mark === "lit") - (b.mark === "lit"))) if (e.path ?? e.points.length) root.append(edgeElement(e, boxes));
  for (const b of boxes) root.append(boxElement(b));
  return { root, w, h };
}

const arrowHead = (id, cls) => svg("marker", { id, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8,
  markerHeight: 8, markerUnits: "userSpaceOnUse", orient: "auto-start-reverse", class: cls }, svg("path", { d: "M0 0.5 8 4 0 7.5z" }));

function edgeElement(e, boxes) {
  const dim = boxes[e.a].dim || boxes[e.b].dim;
  const path = e.path ?? curve(e.points);
  const g = svg("g", { class: `edge ${e.kind ?? ""} ${e.mark ?? ""}${dim ? " dim" : ""}`, tip: e.tip || undefined,
    onclick: e.go ? (event) => { event.stopPropagation(); e.go(); } : undefined });
  g.append(svg("path", { d: path, class: "reach" }),
    svg("path", { d: path, "marker-end": `url(#${/^boundary$/.test(e.kind) ? "arrow-b" : "arrow"})` }));
  e.text.forEach((t, i) => g.append(svg("text", { x: e.lx, y: e.ly + 13 * (i - (e.text.length - 1) / 2) + 3.5,
    class: t.startsWith("⟂") ? "why" : "" }, t)));
  return g;
}

// A smooth line through points: it leaves and arrives upright, and turns evenly between.
function curve(points) {
  const last = points.length - 1;
  const slope = (i) => (i === 0 || i === last ? 0
    : (points[i + 1][0] - points[i - 1][0]) / (points[i + 1][1] - points[i - 1][1] || 1));
  let d = `M${r(points[0][0])} ${r(points[0][1])}`;
  for (let i = 1; i <= last; i++) {
    const [x0, y0] = points[i - 1], [x1, y1] = points[i], third = (y1 - y0) / 3;
    const bend = last === 1 ? (y1 - y0) / 2 : third;
    d += Math.abs(x1 - x0) < 0.5 && last === 1 ? `L${r(x1)} ${r(y1)}`
      : `C${r(x0 + slope(i - 1) * bend)} ${r(y0 + bend)} ${r(x1 - slope(i) * bend)} ${r(y1 - bend)} ${r(x1)} ${r(y1)}`;
  }
  return d;
}
const r = (v) => Math.round(v * 10) / 10;

function boxElement(b) {
  const g = svg("g", { class: `box kind-${b.kind} tone-${b.tone || "none"} ${b.mark ?? ""}${b.dim ? " dim" : ""}`,
    transform: `translate(${r(b.x - b.w / 2)} ${r(b.y - b.h / 2)})`, tip: b.tip || undefined,
    "data-key": b.key, tabindex: b.go ? 0 : undefined, role: b.go ? "button" : undefined,
    "aria-label": b.title, "data-lane": b.lane,
    onclick: b.go ? (event) => { event.stopPropagation(); b.go(); } : undefined,
    ondblclick: b.open ? (event) => { event.stopPropagation(); b.open(); } : undefined,
    onkeydown: (event) => { if (event.key === "Enter") { event.stopPropagation(); (b.go ?? b.open)?.(); } } });
  g.append(...shape(b.kind, b.w, b.h));
  const top = b.kind === "memory" || b.kind === "buffer" ? 10 : 2;
  g.append(svg("text", { x: b.w / 2, y: top + 15, class: "title" }, b.title));
  b.small.forEach((s, i) => g.append(svg("text", { x: b.w / 2, y: top + 30 + 14 * i, class: "small" }, s)));
  if (b.share !== undefined) {
    g.append(svg("rect", { class: "share-track", x: 10, y: b.h - 8, width: b.w - 20, height: 3, rx: 1.5 }),
      svg("rect", { class: "share", x: 10, y: b.h - 8, width: Math.max(0, (b.w - 20) * b.share), height: 3, rx: 1.5 }));
  }
  // in lanes: what the kernel stores and why, where the arrows leave it
  b.foot?.forEach((f, i) => g.append(svg("text", { class: "foot", x: b.w / 2, y: b.lane === "backward" ? -4 - 13 * (b.foot.length - 1 - i) : b.h + 11 + 13 * i, tip: f.tip,
    onclick: (event) => { event.stopPropagation(); f.go(); } }, f.text)));
  return g;
}

function shape(kind, w, h) {
  const path = (d, cls = "body") => svg("path", { d, class: cls });
  switch (kind) {
    case "graph": return [svg("rect", { class: "body behind", x: 4, y: -4, width: w, height: h, rx: 4 }),
      svg("rect", { class: "body", width: w, height: h, rx: 4 })];
    case "copy": return [path(`M0 0H${w - 12}L${w} ${h / 2}L${w - 12} ${h}H0z`)];
    case "buffer": case "memory": return [
      path(`M0 6C0 -2 ${w} -2 ${w} 6V${h - 6}C${w} ${h + 2} 0 ${h + 2} 0 ${h - 6}z`),
      path(`M0 6C0 14 ${w} 14 ${w} 6`, "line")];
    case "reduce": return [path(`M0 0H${w}L${w - 14} ${h}H14z`)];
    case "movement": return [path(`M12 0H${w}L${w - 12} ${h}H0z`)];
    case "control": return [path(`M10 0H${w - 10}L${w} ${h / 2}L${w - 10} ${h}H10L0 ${h / 2}z`)];
    case "index": return [svg("rect", { class: "body", width: w, height: h, rx: h / 2 })];
    case "custom": return [path(`M8 0H${w - 8}L${w} 8V${h - 8}L${w - 8} ${h}H8L0 ${h - 8}V8z`)];
    case "view": return [svg("rect", { class: "body dashed", width: w, height: h, rx: 7 })];
    default: return [svg("rect", { class: "body", width: w, height: h, rx: 7 })];
  }
}

function legend(boxes, edges = []) {
  const tones = new Set(boxes.map((b) => b.tone)), kinds = new Set(boxes.map((b) => b.kind));
  const marks = new Set(boxes.map((b) => b.mark));
  const items = [];
  for (const [tone, text] of Object.entries(TONE_WORDS)) if (tones.has(tone)) {
    items.push(el("span", { class: "key" }, svg("svg", { width: 18, height: 12, class: `box tone-${tone}` },
      svg("rect", { class: "body", x: 1, y: 1, width: 16, height: 10, rx: 2 })), text));
  }
  for (const [kind, text] of Object.entries(SHAPE_WORDS)) if (kinds.has(kind)) {
    items.push(el("span", { class: "key" }, svg("svg", { width: 24, height: 16, viewBox: "-2 -5 28 22", class: "box tone-none" },
      shape(kind, 22, 14)), text));
  }
  for (const [mark, text] of Object.entries(MARK_WORDS)) if (marks.has(mark)) {
    items.push(el("span", { class: "key" }, svg("svg", { width: 20, height: 14, class: `box tone-none ${mark}` },
      svg("rect", { class: "body", x: 2, y: 2, width: 16, height: 10, rx: 2 })), text));
  }
  if (edges.some((e) => e.kind === "boundary")) items.push(el("span", { class: "key" }, el("b", {}, "⟂ "), "why it is stored"));
  return items;
}

// Put a drawing on the stage. It opens fitted to the width; + − 0 and ctrl-wheel change the scale.
let view = null;
function show(stage, drawn, direction = 0) {
  view = drawn;
  stage.replaceChildren(drawn.root);
  stage.classList.remove("deeper", "higher");
  if (direction) { void stage.offsetWidth; stage.classList.add(direction > 0 ? "deeper" : "higher"); }
  zoom(0);
}
function zoom(factor) {
  if (!view?.root) return;
  const stage = byId("stage");
  view.fitted = !factor;
  const fit = Math.min((stage.clientWidth - 8) / view.w, (stage.clientHeight - 8) / view.h);
  if (!factor) view.scale = Math.max(Math.min(1.1, (stage.clientWidth - 8) / view.w), Math.min(0.62, 1), Math.min(fit, 1.1));
  else view.scale = Math.max(0.1, Math.min(4, view.scale * factor));
  view.root.setAttribute("width", view.w * view.scale);
  view.root.setAttribute("height", view.h * view.scale);
}
// bring a box into sight; only its own pane scrolls
function reveal(stage, key) {
  const box = stage.querySelector(`[data-key="${CSS.escape(key)}"]`);
  if (!box) return;
  const a = box.getBoundingClientRect(), b = stage.getBoundingClientRect();
  if (a.top < b.top || a.bottom > b.bottom) stage.scrollTop += a.top - b.top - (b.height - a.height) / 2;
  if (a.left < b.left || a.right > b.right) stage.scrollLeft += a.left - b.left - (b.width - a.width) / 2;
}
