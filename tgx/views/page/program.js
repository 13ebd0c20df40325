// The program pane: kernels and the buffers between them, at one level of zoom; below a kernel, its
// UOps, and below those one rewrite step.

function tone(k) {
  if (S.c === "bound") return "bound-" + (k.bound || "unknown");
  if (S.c === "cost") {
    const share = k.us > 0 ? k.us / (scheduleFacts(S.s).total || 1) : 0;
    return "cost-" + [0.02, 0.05, 0.1, 0.25].filter((s) => share >= s).length;
  }
  return k.phase;
}
const hidden = (phase) => S.h.split(",").includes(phase);

let lastDepth = 0, drawToken = 0;

painters.push(async (changed) => {
  if (!any(changed, "s g in n k l b u p i c h")) return;
  const token = ++drawToken;
  const onlyMarks = !any(changed, "s g in n p i c h") && S.in !== "uops";
  const stage = byId("stage");
  if (S.in === "") ensureVisible(changed);
  const drawn = await picture(onlyMarks);
  if (token !== drawToken) return;
  const depth = [S.g, S.in && "x", S.n].filter(Boolean).join(".").length;
  const top = stage.scrollTop, left = stage.scrollLeft, scale = view?.scale, keptFit = view?.fitted;
  if (drawn instanceof Node) { view = null; stage.replaceChildren(drawn); byId("legend").replaceChildren(); }
  else {
    show(stage, drawn, painting > 1 && !onlyMarks ? Math.sign(depth - lastDepth) : 0);
    if (onlyMarks && scale) { const fitted = view.fitted && keptFit; view.scale = scale; zoom(1); view.fitted = fitted; stage.scrollTop = top; stage.scrollLeft = left; }
    if (S.k >= 0 && S.in === "") reveal(stage, keyOfKernel(S.k));
    byId("legend").replaceChildren(...legend(drawn.boxes, drawn.edges), ...(drawn.notes ?? []).map((t) => el("span", { class: "note" }, t)));
  }
  lastDepth = depth;
  crumbs();
});

// A kernel chosen elsewhere (search, source, timeline): go to the level that draws it.
function ensureVisible(changed) {
  if (S.k < 0 || !any(changed, "k") || any(changed, "g")) return;
  const s = T.schedules.get(S.s);
  if (!s || contains(nodeAt(s.levels, S.g), S.k) || !contains(s.levels, S.k)) return;
  const common = [];
  const path = pathTo(s.levels, S.k).split("."), now = S.g.split(".");
  for (let i = 0; i < path.length && path[i] === now[i]; i++) common.push(path[i]);
  setHash(hashOf({ ...S, g: common.join(".") }), true);
  S.g = common.join(".");
}

async function picture() {
  const s = T.schedules.get(S.s);
  switch (S.in) {
    case "uops": {
      const k = T.kernels.get(S.k);
      const found = await kernelDetail(k), graph = found?.ast ?? found?.uops;
      return graph ? nodesPicture(graph) : quiet("This kernel's UOps were not recorded.", "uops");
    }
    case "lazy": {
      const d = s && await detail("s" + s.id);
      return d?.lazy ? nodesPicture(d.lazy) : quiet("The lazy graph was not recorded.", "lazy");
    }
    case "step": return stepPicture();
    case "roofline": return rooflineElement();
    case "memory": return lifetimesElement();
  }
  return kernelsPicture(s);
}

function quiet(text, topic = "") {
  const more = T.env.missing.filter((m) => !topic || m.toLowerCase().includes(topic));
  return el("div", { class: "quiet" }, el("p", {}, text), more.map((m) => el("p", {}, m)));
}

const keyOfKernel = (k) => {
  const s = T.schedules.get(S.s);
  const node = s && nodeAt(s.levels, S.g);
  const i = node?.[2]?.findIndex((child) => contains(child, k)) ?? -1;
  return i < 0 || members(node[2][i]).length === 1 ? "k" + k : "g" + i;
};

// Kernels (or groups of them) of one level, and what passes between them.
function kernelsPicture(s) {
  if (!s) return T.kernels.length ? orderPicture(T.kernels.slice(0, 60)) : quiet("No kernels: nothing was computed.");
  const facts = scheduleFacts(s.id);
  const node = nodeAt(s.levels, S.g);
  const all = node[2] ?? node[1].map((k) => [T.kernels.get(k)?.name, [k]]);
  const seen = (child) => members(child).some((k) => !hidden(T.kernels.get(k).phase));
  const children = all.filter(seen), gone = all.length - children.length;
  const lineKernels = new Set(S.l ? (T.byLine.get(S.l) ?? []).map((k) => k.id) : []);
  const boxOf = new Map();
  const boxes = children.map((child, at) => {
    const ids = members(child), i = all.indexOf(child);
    ids.forEach((k) => boxOf.set(k, at));
    const kernels = ids.map((k) => T.kernels.get(k));
    const us = kernels.reduce((sum, k) => sum + Math.max(k.us, 0), 0);
    const chosen = ids.includes(S.k) || (S.l && ids.some((k) => lineKernels.has(k)));
    const one = kernels.length === 1 ? kernels[0] : null;
    const phases = kernels.map((k) => k.phase);
    const common = { lane: ["forward", "backward", "optimizer", "data"].reduce((a, b) => (count(phases, b) > count(phases, a) ? b : a)), ids, mark: chosen ? (ids.includes(S.k) ? "chosen" : "lit") : "",
      share: facts.total ? us / (one || facts.most === 0 ? facts.most : facts.total) : undefined };
    if (common.share > 1) common.share = 1;
    if (one) return { ...common, key: "k" + one.id, title: one.name || one.tg, kind: one.kind, tone: tone(one),
      small: [[time(one.us), one.tg].filter(Boolean).join(" · "), linesOf(one)],
      tip: kernelTip(one), go: () => selectKernel(one.id), open: () => one.program >= 0 && go({ k: one.id, in: "uops", n: "" }) };
    const open = () => go({ g: [S.g, i].filter((x) => x !== "").join("."), in: "" });
    return { ...common, key: "g" + i, title: child[0], kind: "graph", tone: groupTone(kernels, facts),
      small: [`${plural(kernels.length, "kernel")}${us ? " · " + time(us) : ""}`, us ? percent(us / facts.total) + " of the time" : ""],
      tip: `${child[0]}\n${plural(kernels.length, "kernel")}; click to go in`, go: open, open };
  });
  const notes = boxes.some((b) => b.kind === "graph") ? [`${plural(members(node).length, "kernel")} in ${all.length} boxes`] : [];
  if (gone) notes.push(`${plural(gone, "box").replace("boxs", "boxes")} of hidden phases`);
  return { ...withEdges(boxes, boxOf, facts, node), notes };
}

function groupTone(kernels, facts) {
  if (S.c === "phase" || S.c === "bound") {
    const count = {};
    for (const k of kernels) count[tone(k)] = (count[tone(k)] ?? 0) + Math.max(k.us, 0.001);
    return Object.entries(count).sort((a, b) => b[1] - a[1])[0][0];
  }
  const share = kernels.reduce((sum, k) => sum + Math.max(k.us, 0), 0) / (facts.total || 1);
  return "cost-" + [0.02, 0.05, 0.1, 0.25].filter((s) => share >= s).length;
}

const count = (list, x) => list.reduce((n, y) => n + (y === x), 0);

const linesOf = (k) => {
  const paths = k.lines.map(([f, n]) => `${T.files.get(f).path.split("/").pop()}:${n}`);
  return paths.slice(0, 2).join(", ") + (paths.length > 2 ? ` +${paths.length - 2}` : "");
};
const kernelTip = (k) => [k.name, k.tg, k.ops.join(", "), k.forward.length ? "gradient of " + k.forward.join(", ") : "",
  k.lines.map(([f, n]) => `${T.files.get(f).path}:${n}`).slice(0, 6).join(", ")].filter(Boolean).join("\n");

// Arrows between boxes: the last kernel before the reader that wrote a buffer.
function withEdges(boxes, boxOf, facts, node) {
  const between = new Map(), outside = new Map(), results = [];
  const writtenBy = new Map();
  const inside = members(node);
  const order = [...inside].sort((a, b) => facts.order.get(a) - facts.order.get(b));
  for (const id of order) {
    const k = T.kernels.get(id);
    if (!boxOf.has(id)) { // its box is hidden: what it writes comes from outside
      for (const b of k.writes) writtenBy.delete(b);
      continue;
    }
    for (const b of new Set(k.reads)) {
      const w = writtenBy.get(b);
      if (w === undefined) { (outside.get(b) ?? outside.set(b, []).get(b)).push(id); continue; }
      if (boxOf.get(w) === boxOf.get(id)) continue;
      const key = boxOf.get(w) + " " + boxOf.get(id);
      (between.get(key) ?? between.set(key, []).get(key)).push([b, w]);
    }
    for (const b of k.writes) writtenBy.set(b, id);
  }
  const edges = [], told = new Set();
  const lanes = new Set(boxes.map((b) => b.lane)).has("backward") && boxes.some((b) => b.lane === "forward");
  for (const [key, list] of between) {
    const [a, b] = key.split(" ").map(Number);
    const edge = bufferEdge(a, b, list), same = a + ":" + list.map(([x]) => x);
    if (told.has(same)) edge.label = []; // one buffer, several readers: said once
    told.add(same);
    edges.push(edge);
  }
  if (lanes) return inLanes(boxes, edges, outside, boxOf);
  const room = 60 - boxes.length;
  for (const [w, why] of order.filter((k) => boxOf.has(k)).flatMap((k) => (T.ends.get(k) ?? []).filter((x) => !x.readers.length && x.buffer >= 0).map((x) => [k, x]))) results.push([w, why]);
  if (!node[2] && outside.size + results.length <= Math.min(room, 24)) { // between groups is enough
    for (const [b, readers] of outside) {
      const buffer = T.buffers.get(b);
      boxes.push(bufferBox(buffer));
      for (const [i, box] of [...new Set(readers.map((k) => boxOf.get(k)))].entries()) {
        edges.push({ a: boxes.length - 1, b: box, label: i ? [] : [bytes(buffer.nbytes)], tip: `${buffer.name} ${bytes(buffer.nbytes)}`, kind: "data", buffers: [b], go: () => go({ b, k: -1, l: "" }) });
      }
    }
    for (const [w, why] of results) {
      boxes.push({ ...bufferBox(T.buffers.get(why.buffer)), key: "r" + why.buffer });
      edges.push(bufferEdge(boxOf.get(w), boxes.length - 1, [[why.buffer, w]]));
    }
  }
  if (!edges.length && boxes.length > 1) return orderEdges(boxes);
  light(boxes, edges);
  return { ...drawing(boxes, edges, { name: "kernels and their buffers" }), boxes, edges };
}

// What the selected kernel reads and writes, or the selected buffer, stands out; the rest steps back.
function light(boxes, edges) {
  const at = boxes.findIndex((b) => b.ids?.includes(S.k));
  if (at < 0 && S.b < 0) return;
  for (const e of edges) e.mark = (S.b >= 0 ? e.buffers?.includes(S.b) : e.a === at || e.b === at) ? "lit" : "faint";
}

// Forward, backward and optimizer side by side: see lanes.js. A kernel's box says what it stores and
// why; of the buffers from outside only those that no kernel changes are drawn (images, labels).
function inLanes(boxes, edges, outside, boxOf) {
  const forward = new Map(); // operation -> box
  boxes.forEach((b, i) => { if (b.lane === "forward") for (const k of b.ids) for (const o of T.kernels.get(k).origins) forward.set(o, i); });
  for (const b of boxes) {
    if (b.lane === "backward") {
      const votes = new Map();
      for (const k of b.ids) for (const o of T.kernels.get(k).origins) {
        const i = forward.get(T.origins.get(o).forward);
        if (i !== undefined) votes.set(i, (votes.get(i) ?? 0) + 1);
      }
      b.anchors = [...votes].sort((x, y) => y[1] - x[1]).map(([i]) => i);
    }
    if (b.kind !== "graph") {
      const ends = (T.ends.get(b.ids[0]) ?? []).filter((x) => x.buffer >= 0);
      b.foot = ends.slice(0, 1).map((x) => ({ text: `⟂ ${short(x.brief, 30)} · ${bytes(T.buffers.get(x.buffer).nbytes)}${ends.length > 1 ? ` +${ends.length - 1}` : ""}`,
        tip: x.because, go: () => go({ b: x.buffer, k: b.ids[0], tab: "why", l: "" }) }));
    }
  }
  for (const [id, readers] of outside) {
    const buffer = T.buffers.get(id), to = [...new Set(readers.map((k) => boxOf.get(k)))].filter((i) => boxes[i].lane === "forward");
    if (buffer.kind !== "input" || !buffer.name || T.writers.has(id) || !to.length || boxes.length >= 60) continue;
    for (const i of to) edges.push({ a: boxes.length, b: i, kind: "data", tip: `${buffer.name} ${bytes(buffer.nbytes)}`, buffers: [id], go: () => go({ b: id, k: -1, l: "" }) });
    boxes.push({ ...bufferBox(buffer), lane: "data", anchors: to });
  }
  light(boxes, edges);
  return { ...drawing(boxes, edges, { name: "kernels and their buffers", lanes: true }), boxes, edges };
}

function bufferBox(b) {
  return { key: "b" + b.id, title: b.name || "buffer " + b.id, small: [`${b.shape} ${b.dtype}`.trim()], kind: "buffer",
    tone: "", mark: S.b === b.id ? "chosen" : "", tip: `${b.name}\n${b.kind}, ${bytes(b.nbytes)}`, go: () => go({ b: b.id, k: -1, l: "" }) };
}

function bufferEdge(a, b, list) {
  const names = [...new Set(list.map(([x]) => x))].map((x) => T.buffers.get(x));
  const reasons = list.map(([x, w]) => T.reasons.get(`${w}:${x}`)).filter(Boolean);
  const total = names.reduce((sum, x) => sum + x.nbytes, 0);
  const what = names.length === 1 ? names[0].name : plural(names.length, "buffer");
  const brief = [...new Set(reasons.map((x) => x.brief))];
  return { a, b, kind: reasons.length ? "boundary" : "data", buffers: names.map((x) => x.id),
    label: [[short(what, 20), bytes(total)].filter(Boolean).join(" · "), brief.length ? "⟂ " + short(brief[0], 30) + (brief.length > 1 ? ` +${brief.length - 1}` : "") : ""],
    tip: [names.slice(0, 6).map((x) => `${x.name} ${x.shape} ${bytes(x.nbytes)}`).join("\n"),
      ...[...new Set(reasons.map((x) => x.because))].slice(0, 3)].join("\n"),
    go: () => go({ b: names[0].id, k: list[0][1], tab: "why", l: "" }) };
}

const orderPicture = (kernels) => orderEdges(kernels.map((k) => ({ key: "k" + k.id, title: k.name || k.tg, kind: k.kind, tone: tone(k),
  small: [time(k.us)], mark: S.k === k.id ? "chosen" : "", dim: hidden(k.phase), tip: kernelTip(k), go: () => selectKernel(k.id) })));
function orderEdges(boxes) {
  const edges = boxes.slice(1).map((_, i) => ({ a: i, b: i + 1, kind: "order" }));
  return { ...drawing(boxes, edges), boxes, edges, notes: ["in launch order: which kernel reads what is not in this trace"] };
}

// A graph's nodes, in the groups of one level. Constants are written inside their readers.
function nodesPicture(graph) {
  const node = nodeAt(graph.levels, S.n);
  const children = node[2] ?? node[1].map((i) => ["", [i]]);
  const boxOf = new Map();
  children.forEach((child, c) => members(child).forEach((i) => boxOf.set(i, c)));
  const boxes = children.map((child, c) => {
    const ids = members(child);
    if (ids.length === 1) return nodeBox(graph, ids[0]);
    const sorts = new Set(ids.map((i) => graph.sort(i)));
    const open = () => go({ n: [S.n, c].filter((x) => x !== "").join("."), u: -1 });
    return { key: "g" + c, title: child[0], small: [plural(ids.length, "node")], kind: sorts.size === 1 ? [...sorts][0] : "graph",
      tone: graph.phaseOf(ids[0]), mark: ids.includes(S.u) ? "chosen" : "", tip: child[0] + "\nclick to go in", go: open, open };
  });
  const between = new Map();
  for (const [i, c] of boxOf) for (const s of graph.src(i)) {
    const from = boxOf.get(s);
    if (from === undefined || from === c) continue;
    between.set(from + " " + c, (between.get(from + " " + c) ?? 0) + 1);
  }
  const edges = [...between].map(([key, n]) => ({ a: +key.split(" ")[0], b: +key.split(" ")[1], label: n > 1 ? ["×" + n] : [] }));
  const lanes = graph.kind === "lazy" && !S.n && nodeLanes(graph, children, boxes);
  return { ...drawing(boxes, edges, { lanes }), boxes, edges, notes: [plural(graph.n, "node")] };
}

// A Tensor graph that trains is drawn in lanes as its kernels are.
function nodeLanes(graph, children, boxes) {
  const forward = new Map();
  children.forEach((child, c) => {
    const ids = members(child);
    boxes[c].lane = ids.some((i) => graph.op(i) === "PARAM") && !ids.some((i) => ["arithmetic", "reduce"].includes(graph.sort(i))) ? "data" : boxes[c].tone || (boxes[c].kind === "control" ? "optimizer" : "data");
    if (boxes[c].lane === "forward") for (const i of ids) for (const o of graph.origins(i)) if (!forward.has(o)) forward.set(o, c);
  });
  boxes.forEach((b, c) => {
    if (b.lane !== "backward") return;
    b.anchors = [...new Set(members(children[c]).flatMap((i) => graph.origins(i)).map((o) => forward.get(T.origins.get(o)?.forward)).filter((x) => x !== undefined))];
  });
  return boxes.some((b) => b.lane === "backward") && boxes.some((b) => b.lane === "forward");
}

function nodeBox(graph, i, extra = {}) {
  const consts = graph.src(i).filter((s) => graph.isConst(s)).map((s) => short(graph.constText(s), 16));
  const about = [graph.dtype(i), graph.shape(i)].filter(Boolean).join(" ") + (consts.length ? ` with ${consts.slice(0, 3).join(", ")}` : "");
  const places = [...new Set(graph.origins(i).map(originPlace))].filter(Boolean);
  const where = [graph.tensor_op(i), places[0]].filter(Boolean).join(" ");
  return { key: "n" + i, title: graph.title(i), small: [about, where], kind: graph.sort(i) === "constant" ? "index" : graph.sort(i),
    tone: graph.phaseOf(i), mark: S.u === i ? "chosen" : "", tip: `${i}: ${graph.op(i)} ${short(graph.arg(i), 200)}\n${about}\n${[graph.tensor_op(i), ...places].join(" ")}`,
    go: () => go({ u: S.u === i ? -1 : i }), ...extra };
}

// program › group › kernel › UOps › step: where we are, and the way back
function crumbs() {
  const s = T.schedules.get(S.s);
  const out = [];
  const crumb = (text, changes, last) => out.push(el("button", { class: last ? "here" : "", onclick: () => go(changes) }, short(text, 34)));
  const inside = { uops: "UOps", step: "rewrite step", lazy: "lazy graph", roofline: "roofline", memory: "memory" }[S.in];
  crumb(s ? scheduleName(s) : "kernels", { g: "", in: "", n: "", u: -1 });
  let path = "";
  for (const i of S.g ? S.g.split(".") : []) {
    path = path ? path + "." + i : i;
    crumb(nodeAt(s.levels, path)[0], { g: path, in: "", n: "", u: -1 });
  }
  if (S.in === "uops" || S.in === "step") {
    const k = T.kernels.get(S.k);
    if (k) crumb(k.name || k.tg, { in: "", n: "", u: -1 });
  }
  if (inside) crumb(inside, { n: "", u: -1 });
  if (S.n && (S.in === "uops" || S.in === "lazy")) crumb("group " + S.n, {});
  const button = (name, text, tip) => el("button", { class: `mode ${S.in === name ? "on" : ""}`, tip, onclick: () => go({ in: name, n: "", u: -1 }) }, text);
  byId("crumbs").replaceChildren(el("span", { class: "path" }, out.flatMap((b, i) => (i ? [el("i", {}, "›"), b] : [b]))),
    el("span", { class: "modes" }, button("", "kernels", "the kernels and the buffers between them"), button("lazy", "lazy graph", "the Tensor graph before it was cut into kernels"),
      button("roofline", "roofline", "work against memory traffic"), button("memory", "memory", "which buffers are alive when"),
      el("button", { onclick: () => zoom(1 / 1.25), "aria-label": "smaller" }, "−"), el("button", { onclick: () => zoom(1.25), "aria-label": "larger" }, "+"),
      el("button", { onclick: () => zoom(0), tip: "fit (0)" }, "fit")));
}
