// The trace: chunks unpacked from this page, look-ups, and how numbers read.

const chunkText = (name) => document.getElementById("chunk-" + name)?.textContent;

async function unpack(name) {
  const text = chunkText(name);
  if (!text) return null;
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

// {columns, rows} as a list of objects, with .get(id)
function table({ columns, rows }) {
  const list = rows.map((row) => Object.fromEntries(columns.map((c, i) => [c, row[i]])));
  const index = new Map(list.map((x) => [x.id, x]));
  list.get = (id) => index.get(id);
  return list;
}

// A graph kept as columns; cells are read by name: g.op(3), g.src(3).
class Graph {
  constructor(raw) {
    Object.assign(this, { id: raw.id, kind: raw.kind, n: raw.n, roots: raw.roots, levels: raw.levels, own: raw.own });
    for (const name of ["op", "dtype", "shape", "arg", "tensor_op", "phase", "label"]) {
      const column = raw[name];
      this[name] = column ? (i) => column.words[column.at[i]] : () => "";
    }
    this.src = (i) => (raw.back[i] ?? []).map((distance) => i - distance);
    this.origins = raw.origins ? (i) => raw.origins.rows[raw.origins.at[i]] ?? [] : () => [];
  }
  sort(i) {
    const op = this.op(i);
    if (SORTS[op]) return SORTS[op];
    return this.dtype(i).includes("int") && !this.origins(i).length && !this.tensor_op(i)
      ? "index" : "arithmetic";
  }
  // a constant, or constants only cast and gathered (a shape is a stack of them)
  isConst(i, depth = 0) {
    this.constants ??= new Map();
    if (!this.constants.has(i)) {
      const op = this.op(i), sort = SORTS[op], src = this.src(i);
      const folds = (!sort || sort === "movement") && src.length > 0 && depth < 40 && src.every((s) => this.isConst(s, depth + 1));
      this.constants.set(i, sort === "constant" || folds || (op === "STACK" && !src.length));
    }
    return this.constants.get(i);
  }
  constText(i, depth = 3) {
    const src = this.src(i);
    if (!src.length || !depth) return short(this.arg(i), 200) || this.op(i);
    const parts = src.slice(0, 8).map((s) => this.constText(s, depth - 1));
    if (parts.length === 2 && SIGNS[this.op(i)]) return `(${parts[0]} ${SIGNS[this.op(i)]} ${parts[1]})`;
    return src.length === 1 ? parts[0] : `(${parts.join(", ")})`;
  }
  title(i) { return short(this.label(i), 200) || (this.arg(i) ? `${this.op(i)} ${short(this.arg(i), 24)}` : this.op(i)); }
  phaseOf(i) {
    return this.phase(i) || this.origins(i).map((o) => T.origins.get(o)?.phase).find(Boolean) || "";
  }
  // the node as an expression a few levels deep: (PARAM x + 2.0)
  expression(i, depth = 4) {
    const src = this.src(i), sign = SIGNS[this.op(i)];
    if (this.isConst(i)) return this.constText(i);
    if (!src.length) return this.title(i);
    if (!depth) return this.op(i) + "(…)";
    const parts = src.slice(0, 6).map((s) => this.expression(s, depth - 1));
    if (src.length > 6) parts.push("…");
    if (sign && parts.length === 2) return `(${parts[0]} ${sign} ${parts[1]})`;
    return `${this.title(i)}(${parts.join(", ")})`;
  }
}

const SIGNS = { __proto__: null, ADD: "+", MUL: "×", SUB: "−", FDIV: "/", IDIV: "//", FLOORDIV: "//", MOD: "%",
  FLOORMOD: "%", CMPLT: "<", CMPNE: "≠", CMPEQ: "=", AND: "&", OR: "|", XOR: "^", SHL: "<<", SHR: ">>" };

const SORTS = { __proto__: null };
for (const [sort, ops] of Object.entries({
  control: "RANGE END IF ENDIF BARRIER SINK LINEAR PROGRAM SPECIAL",
  memory: "PARAM BUFFER DEFINE_LOCAL DEFINE_REG DEFINE_GLOBAL LOAD STORE INDEX COPY ASSIGN AFTER",
  movement: "RESHAPE PERMUTE EXPAND PAD SHRINK FLIP VIEW GEP VECTORIZE STACK CAT CAST BITCAST CONTIGUOUS DETACH",
  reduce: "REDUCE REDUCE_AXIS WMMA ALLREDUCE",
  constant: "CONST VCONST UNIQUE DEVICE BIND DEFINE_VAR NOOP",
})) for (const op of ops.split(" ")) SORTS[op] = sort;

const T = {}; // the trace's core, filled by loadCore

async function loadCore() {
  const core = await unpack("core");
  for (const name of ["files", "frames", "origins", "kernels", "buffers", "boundaries", "schedules",
    "programs", "rules", "events", "counts", "traffic"]) T[name] = table(core[name]);
  for (const name of ["env", "show", "steady", "roof", "runs", "memory"]) T[name] = core[name];
  T.chunks = new Set(core.chunks);
  T.byLine = new Map(); // "file:line" -> kernels
  T.readers = new Map();
  T.writers = new Map();
  const push = (map, key, value) => (map.get(key) ?? map.set(key, []).get(key)).push(value);
  for (const k of T.kernels) {
    for (const [f, n] of k.lines) push(T.byLine, `${f}:${n}`, k);
    for (const b of new Set(k.reads)) push(T.readers, b, k);
    for (const b of new Set(k.writes)) push(T.writers, b, k);
  }
  T.reasons = new Map(); // "kernel:buffer" -> boundary
  T.ends = new Map();
  T.begins = new Map();
  for (const b of T.boundaries) {
    if (b.buffer >= 0) T.reasons.set(`${b.source}:${b.buffer}`, b);
    push(T.ends, b.source, b);
    for (const r of b.readers) if (r !== b.source) push(T.begins, r, b);
  }
  T.trafficOf = new Map();
  for (const t of T.traffic) push(T.trafficOf, t.kernel, t);
  T.runOf = new Map(T.runs.map(([k, start, us]) => [k, { start, us }]));
}

// The details of a program ("p3") or schedule ("s0"), unpacked once.
const details = new Map();
function detail(name) {
  if (!T.chunks.has(name)) return Promise.resolve(null);
  if (!details.has(name)) {
    details.set(name, unpack(name).then((raw) => {
      for (const key of ["uops", "ast", "lazy"]) if (raw[key]) raw[key] = new Graph(raw[key]);
      raw.table = new Map((raw.table ?? []).map((g) => [g.id, new Graph(g)]));
      return raw;
    }));
  }
  return details.get(name);
}

// A kernel's UOps, and its AST where that says more: the program's, with the origins of this kernel.
async function kernelDetail(k) {
  const d = k && k.program >= 0 ? await detail("p" + k.program) : null;
  if (!d) return null;
  d.graphs ??= new Map();
  if (!d.graphs.has(k.id)) d.graphs.set(k.id, { uops: ofKernel(d.uops, k.id), ast: ofKernel(d.ast, k.id) });
  return { ...d, ...d.graphs.get(k.id) };
}
function ofKernel(shared, kernel) {
  const own = shared?.own?.kernels[kernel];
  if (!own) return shared;
  const graph = Object.create(shared), { at, rows } = shared.own.origins[own[0]];
  graph.origins = (i) => rows[at[i]] ?? [];
  const first = (i) => T.origins.get(graph.origins(i)[0]);
  graph.tensor_op = (i) => first(i)?.op ?? "";
  graph.levels = shared.own.levels[own[1]];
  return graph;
}

// What one schedule's kernels are and take; the unit the page shows.
const scheduleCache = new Map();
function scheduleFacts(id) {
  if (!scheduleCache.has(id)) {
    const s = T.schedules.get(id);
    const kernels = s ? s.kernels.map((k) => T.kernels.get(k)) : [...T.kernels];
    const total = kernels.reduce((sum, k) => sum + Math.max(k.us, 0), 0);
    const most = kernels.reduce((m, k) => Math.max(m, k.us), 0);
    scheduleCache.set(id, { kernels, total, most, order: new Map(kernels.map((k, i) => [k.id, i])),
      has: new Set(kernels.map((k) => k.id)) });
  }
  return scheduleCache.get(id);
}

const place = (frame) => {
  const f = T.frames.get(frame);
  return f ? `${T.files.get(f.file).path}:${f.line}` : "";
};
// where an operation stands in the user's code; a gradient's is its forward operation's
const originPlace = (id) => {
  let o = T.origins.get(id);
  if (o && o.forward >= 0) o = T.origins.get(o.forward) ?? o;
  return o ? place(o.frame) : "";
};
const scheduleName = (s) => s.name || (s.jit ? "jit " + s.jit : "schedule " + s.id);

// **** words ****
function short(text, n) {
  text = String(text).replace(/\s+/g, " ");
  return text.length > n ? text.slice(0, n - 1) + "…" : text;
}
function scaled(value, step, units) {
  let i = 0;
  while (Math.abs(value) >= step * 0.9995 && i < units.length - 1) { value /= step; i++; }
  const digits = i === 0 || Math.abs(value) >= 99.95 ? value.toFixed(0) : String(+value.toPrecision(3));
  return digits + " " + units[i];
}
const bytes = (n) => (n < 0 ? "" : scaled(n, 1000, ["B", "kB", "MB", "GB", "TB"]));
const rate = (n, unit) => (n < 0 ? "" : scaled(n, 1000, ["", "k", "M", "G", "T"].map((p) => p + unit + "/s")));
function time(us) {
  if (us < 0) return "";
  if (us < 99.5) return +us.toPrecision(2) + " µs";
  return us < 999500 ? +(us / 1e3).toPrecision(3) + " ms" : +(us / 1e6).toPrecision(3) + " s";
}
const percent = (p) => (p < 0 ? "" : p > 0 && p < 0.0005 ? "<0.1 %" : p >= 0.0995 ? (p * 100).toFixed(0) + " %" : (p * 100).toFixed(1) + " %");
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
const flopsOf = (k) => (k.us > 0 && k.flops >= 0 ? (k.flops / k.us) * 1e6 : -1);
const bytesOf = (k) => (k.us > 0 && k.bytes >= 0 ? (k.bytes / k.us) * 1e6 : -1);

// **** elements: only ever text nodes, never markup ****
const SVG = "http://www.w3.org/2000/svg";
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "tip") node.dataset.tip = value;
    else if (name === "style") node.style.cssText = value; // as an attribute the page's policy forbids it
    else node.setAttribute(name, value === true ? "" : shown(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    node.append(child instanceof Node ? child : document.createTextNode(shown(child)));
  }
  return node;
}
// no browser lays out a name of a megabyte
const LONGEST = 1000;
const shown = (text) => ((text = String(text)).length > LONGEST ? `${text.slice(0, LONGEST)}… (${plural(text.length, "character")})` : text);
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const byId = (id) => document.getElementById(id);
