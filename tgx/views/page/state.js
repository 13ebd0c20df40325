// One selection, kept in the address after #, so that Back works and a link shows what you see.
//
//   s schedule   g path of the group shown   in "" | uops | lazy | step | roofline | memory
//   n path of the group of nodes shown       k kernel   l "file:line"   b buffer   u UOp
//   tab of the kernel pane   p pass   i step   c what colour means   h phases hidden

const DEFAULTS = { s: -1, g: "", in: "", n: "", k: -1, l: "", b: -1, u: -1, tab: "why", p: -1, i: 0,
  c: "phase", h: "" };
let S = { ...DEFAULTS };
const painters = []; // functions (changed: Set of keys) => void

let ownHash = null; // used where the address is not ours to change: inside a notebook's frame
const currentHash = () => ownHash ?? location.hash;
function setHash(hash, quiet) {
  try {
    if (ownHash === null) history[quiet ? "replaceState" : "pushState"](null, "", hash);
    else ownHash = hash;
  } catch { ownHash = hash; }
}

function parseHash() {
  const out = { ...DEFAULTS, s: T.show };
  for (const [key, value] of new URLSearchParams(currentHash().slice(1))) {
    if (!Object.hasOwn(DEFAULTS, key)) continue;
    out[key] = typeof DEFAULTS[key] === "number" ? (Number.isInteger(+value) ? +value : DEFAULTS[key]) : value;
  }
  if (!T.schedules.get(out.s)) out.s = T.show;
  if (!T.kernels.get(out.k)) out.k = -1;
  if (!T.buffers.get(out.b)) out.b = -1;
  const own = (T.kernels.get(out.k) ?? T.buffers.get(out.b))?.schedule; // a link may name only these
  if (own >= 0 && !/[#&]s=/.test(currentHash())) out.s = own;
  return out;
}

function hashOf(state) {
  const words = new URLSearchParams();
  for (const key of Object.keys(DEFAULTS)) {
    const base = key === "s" ? T.show : DEFAULTS[key];
    if (state[key] !== base) words.set(key, state[key]);
  }
  return "#" + words;
}

// Change the selection. `quiet` replaces the history entry (sliders, hovering) instead of adding one.
function go(changes, quiet = false) {
  const hash = hashOf({ ...S, ...changes });
  if (hash === hashOf(S)) return;
  if (hash !== (currentHash() || "#")) setHash(hash, quiet);
  paint();
}

let painting = 0;
function paint(all = false) {
  const next = parseHash();
  const changed = new Set(Object.keys(DEFAULTS).filter((key) => all || next[key] !== S[key]));
  S = next;
  painting++;
  for (const painter of painters) painter(changed);
}

const any = (changed, keys) => [...keys.split(" ")].some((key) => changed.has(key));

// Selecting a kernel: show it, in its schedule, at the level of detail where it has its own box.
function selectKernel(k, more = {}) {
  const kernel = T.kernels.get(k);
  if (!kernel) return;
  const s = kernel.schedule >= 0 && T.schedules.get(kernel.schedule) ? kernel.schedule : S.s;
  const changes = { k, s, l: "", b: -1, u: -1, p: -1, i: 0, ...more };
  if (["uops", "step", "roofline", "memory", "lazy"].includes(S.in) && k !== S.k && !("in" in more)) {
    if (S.in !== "roofline" && S.in !== "memory") changes.in = "";
    changes.n = "";
  }
  if (s !== S.s) changes.g = "";
  go(changes);
}

// Where a kernel stands in its schedule's tree of groups: the path of the group that draws it.
function pathTo(tree, member) {
  const path = [];
  let node = tree;
  while (node && node[2]) {
    const i = node[2].findIndex((child) => contains(child, member));
    if (i < 0) return "";
    path.push(i);
    node = node[2][i];
  }
  return path.join(".");
}
const membersCache = new WeakMap();
function members(node) {
  if (!membersCache.has(node)) membersCache.set(node, node[2] ? node[2].flatMap(members) : node[1]);
  return membersCache.get(node);
}
const setCache = new WeakMap();
function contains(node, member) {
  if (!setCache.has(node)) setCache.set(node, new Set(members(node)));
  return setCache.get(node).has(member);
}
function nodeAt(tree, path) {
  let node = tree;
  for (const i of path ? path.split(".") : []) {
    if (!node[2]?.[+i]) return node;
    node = node[2][+i];
  }
  return node;
}
const parentPath = (path) => path.split(".").slice(0, -1).join(".");
