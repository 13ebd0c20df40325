// The page of one backward: a slider over its steps. State is (walk, step, open operation), and
// stands in the address: #w=0&s=3&o=5.

const $ = (id) => document.getElementById(id);
const bytes = Uint8Array.from(atob($("data").textContent), (c) => c.charCodeAt(0));
const T = JSON.parse(new TextDecoder().decode(bytes));

function el(tag, classes, ...children) {
  const e = document.createElement(tag);
  if (classes) e.className = classes;
  e.append(...children.filter((c) => c !== "" && c !== false && c != null));
  return e;
}

const state = { w: 0, s: 0, o: -1 };
let playing = 0;
const walk = () => T.walks[state.w];
const step = () => walk().steps[state.s];

// **** pictures: graphviz's groups by the key in their title ****

const boxes = new Map();
for (const picture of document.querySelectorAll(".picture")) {
  const own = new Map();
  for (const g of picture.querySelectorAll("g.node, g.edge")) {
    const key = g.querySelector("title")?.textContent ?? "";
    if (!own.has(key)) own.set(key, []);
    own.get(key).push(g);
  }
  boxes.set(picture.dataset.picture, own);
}

function shownPicture() {
  const open = walk().operations.find((o) => o.id === state.o);
  return open?.picture || walk().picture;
}

// the step after which each node's gradient is complete, and the first of each operation
function complete() {
  const w = walk();
  if (!w.complete) {
    w.complete = new Map();
    w.steps.forEach((s, i) => {
      if (i === 0) w.complete.set(s.node, 0);
      for (const p of s.parts) if (p.gets) w.complete.set(p.target, i);
    });
    w.first = new Map();
    w.steps.forEach((s, i) => { if (!w.first.has(s.group)) w.first.set(s.group, i); });
  }
  return w.complete;
}

// as wide as the pane, where that leaves it readable
function fit(svg) {
  const own = svg?.viewBox.baseVal.width * 4 / 3;
  if (own) svg.style.width = `${own * Math.min(1, Math.max(0.62, ($("pictures").clientWidth - 24) / own))}px`;
  svg?.style.setProperty("height", "auto");
}

function drawPicture() {
  const key = shownPicture(), here = step(), when = complete();
  for (const p of document.querySelectorAll(".picture")) {
    p.hidden = p.dataset.picture !== key;
    if (!p.hidden) fit(p.querySelector("svg"));
  }
  for (const [title, groups] of boxes.get(key) ?? []) {
    for (const g of groups) {
      g.classList.remove("now", "later", "target");
      const ends = title.split("->");
      const late = ends.some((end) => {
        const id = Number(end.slice(1));
        if (end[0] === "g") return (when.get(id) ?? Infinity) > state.s;
        if (end[0] === "d") return (walk().first.get(id) ?? Infinity) > state.s;
        return false;
      });
      g.classList.toggle("later", late);
      if (ends.length > 1) continue;
      const id = Number(title.slice(1));
      if ("ng".includes(title[0])) {
        g.classList.toggle("now", id === here.node);
        g.classList.toggle("target", here.parts.some((p) => p.gets && p.target === id));
      } else if ("od".includes(title[0])) {
        g.classList.toggle("now", id === here.group);
        if (walk().operations.find((o) => o.id === id)?.picture) g.dataset.open = id;
      }
    }
  }
  const now = document.querySelector(".picture:not([hidden]) .now");
  now?.scrollIntoView({ block: "nearest", inline: "nearest" });
  const operation = walk().operations.find((o) => o.id === here.group);
  const crumbs = [];
  if (state.o >= 0) {
    const whole = el("button", "", "← the whole walk");
    whole.id = "close";
    whole.onclick = () => go({ o: -1 });
    crumbs.push(whole, el("span", "", walk().operations.find((o) => o.id === state.o).name));
  } else if (operation?.picture) {
    const open = el("button", "", `open ${operation.name}`);
    open.id = "open";
    open.onclick = () => go({ o: operation.id });
    crumbs.push(open, el("span", "", "click an operation to see its own steps"));
  }
  if (!key) crumbs.push(el("span", "", T.problems[0] ?? "no picture"));
  $("crumbs").replaceChildren(...crumbs);
}

// **** the code ****

function drawCode() {
  const s = step(), file = T.files[s.file];
  $("file").textContent = file ? file.path : "";
  const used = new Map();
  walk().steps.forEach((x, i) => {
    if (x.file === s.file && !used.has(x.line)) used.set(x.line, i);
  });
  const rows = (file?.lines ?? []).map(([n, text]) => {
    const lit = n === s.line;
    const parts = lit && s.start >= 0
      ? [text.slice(0, s.start), el("mark", "", text.slice(s.start, s.end)), text.slice(s.end)] : [text];
    const row = el("li", lit ? "lit" : "", el("span", "no", String(n)), el("span", "", ...parts));
    row.dataset.line = n;
    if (used.has(n)) { row.classList.add("has"); row.onclick = () => go({ s: used.get(n) }); }
    return row;
  });
  $("lines").replaceChildren(...rows);
  $("lines").hidden = !rows.length;
  const lit = $("lines").querySelector(".lit");
  if (lit) $("lines").scrollTop = lit.offsetTop - $("lines").offsetTop - $("lines").clientHeight / 3;
  $("place").textContent = s.place;
  $("rule").textContent = s.rule || "no rule: the walk does this itself";
}

// **** the step ****

function part(p) {
  if (!p.gets) return el("div", "part stops", el("b", "", p.to), `: nothing flows. ${p.stops}`);
  const notes = [];
  if (p.summed) notes.push(`summed over axis ${p.summed}, along which it was repeated`);
  if (p.stops) notes.push(`goes no further: ${p.stops}`);
  const check = p.check && el("small", p.check.startsWith("✓") ? "ok" : "",
    `${p.check}${p.difference ? `   central difference ${p.difference}, here ${p.beside}` : ""}`);
  return el("div", "part", el("b", "", `${p.to} += ${p.gets}`), el("div", "math", p.formula),
    p.adds && el("div", "sum", `running total ${p.total}`),
    ...notes.map((n) => el("small", "", n)), check);
}

function drawStep() {
  const s = step(), operation = walk().operations.find((o) => o.id === s.group);
  const facts = [["the forward computed", `${s.formula} = ${s.value}`], ["gradient that comes in", s.upstream]];
  if (operation && operation.name !== s.op) facts.push(["part of", operation.name]);
  facts.push(["kernel", s.kernels.join(", ") || (s.made ? "none: a constant, or only indices" : "none: nothing new")]);
  const list = el("dl", "");
  for (const [k, v] of facts) list.append(el("dt", "", k), el("dd", "", v));
  const flows = operation?.flows.filter((f) => f.formula) ?? [];
  $("detail").replaceChildren(
    el("h1", "", `${s.op}  ${s.name}`), el("div", "at", s.at), list,
    ...s.parts.map(part),
    ...(flows.length ? [el("h2", "", `${operation.name}, by the textbook`)] : []),
    ...flows.map((f) => el("div", "", el("span", "math", f.formula), ` for ${f.to}  `, el("span", "ok", f.check))),
  );
  const totals = new Map();
  for (const x of walk().steps.slice(0, state.s + 1)) {
    for (const p of x.parts) if (p.gets && !p.stops) totals.set(p.target, p.total);
  }
  $("targets").replaceChildren(...walk().targets.map((t) => {
    const own = totals.get(t.node);
    const row = el("tr", s.parts.some((p) => p.target === t.node) ? "now" : "", el("td", "", t.name),
      el("td", own === undefined ? "wait" : "", own ?? "…"),
      el("td", "", own === t.gradient ? t.check : ""));
    return row;
  }));
  $("kernels").replaceChildren(...walk().kernels.map((k) => {
    const notes = [];
    if (k.again.length) notes.push(`computes again ${k.again.join(", ")}`);
    if (k.reads.length) notes.push(`reads ${k.reads.join(", ")}`);
    const row = el("div", `kernel${k.steps.includes(state.s) ? " now" : ""}`,
      el("b", "", `${k.id}  ${k.name}`), k.spans && el("span", "", `  steps ${k.spans}`),
      ...notes.map((n) => el("small", "", n)));
    if (k.steps.length) row.onclick = () => go({ s: k.steps[0] });
    return row;
  }));
  for (const li of $("list").children) li.classList.toggle("on", Number(li.dataset.step) === state.s);
  const row = $("list").children[state.s];
  if (row) $("list").scrollTop = row.offsetTop - $("list").offsetTop - $("list").clientHeight / 2;
}

// **** moving ****

function drawWalk() {
  const w = walk();
  $("title").textContent = w.title;
  $("title").title = [...w.heading, w.result].join("\n");
  $("slider").max = Math.max(0, w.steps.length - 1);
  const names = new Map(w.operations.map((o) => [o.id, o.name]));
  $("list").replaceChildren(...w.steps.map((s, i) => {
    const li = el("li", "", el("span", "n", String(i + 1)), el("span", "", s.op),
      el("span", "group", names.get(s.group) ?? ""));
    li.dataset.step = i;
    li.onclick = () => go({ s: i });
    return li;
  }));
  $("findings").replaceChildren(...w.findings.map((f) => {
    const p = el("p", f.kind, `${f.text}${f.place ? ` (${f.place})` : ""}`);
    if (f.step >= 0) {
      const b = el("button", "", `step ${f.step + 1}`);
      b.onclick = () => go({ s: f.step });
      p.append(b);
    }
    return p;
  }));
}

let drawn = -1;
function draw() {
  const w = walk();
  if (!w || !w.steps.length) return;
  if (drawn !== state.w) { drawWalk(); drawn = state.w; }
  $("slider").value = state.s;
  $("walk").value = state.w;
  $("count").textContent = `step ${state.s + 1} of ${w.steps.length}`;
  drawCode();
  drawPicture();
  drawStep();
}

function go(change) {
  const w = T.walks[change.w ?? state.w];
  if (!w) return;
  Object.assign(state, change.w !== undefined && change.w !== state.w ? { s: 0, o: -1 } : {}, change);
  state.s = Math.min(Math.max(0, state.s), Math.max(0, w.steps.length - 1));
  if (state.o >= 0 && change.o === undefined && step().group !== state.o) {  // a picture follows
    state.o = walk().operations.find((o) => o.id === step().group)?.picture ? step().group : -1;
  }
  const hash = `#w=${state.w}&s=${state.s}${state.o >= 0 ? `&o=${state.o}` : ""}`;
  if (location.hash !== hash) history.replaceState(null, "", hash);
  draw();
}

function fromHash() {
  const words = new URLSearchParams(location.hash.slice(1));
  const number = (k, other) => (/^\d+$/.test(words.get(k) ?? "") ? Number(words.get(k)) : other);
  const w = number("w", 0) < T.walks.length ? number("w", 0) : 0;
  const o = number("o", -1);
  state.w = w;
  go({ w, s: number("s", 0), o: T.walks[w]?.operations.some((x) => x.id === o && x.picture) ? o : -1 });
}

function play(on) {
  clearInterval(playing);
  playing = 0;
  $("play").textContent = on ? "⏸" : "⏵";
  if (on) playing = setInterval(() => {
    if (state.s + 1 >= walk().steps.length) play(false); else go({ s: state.s + 1 });
  }, 900);
}

$("slider").oninput = () => go({ s: Number($("slider").value) });
$("first").onclick = () => go({ s: 0 });
$("back").onclick = () => go({ s: state.s - 1 });
$("next").onclick = () => go({ s: state.s + 1 });
$("play").onclick = () => play(!playing);
$("walk").onchange = () => go({ w: Number($("walk").value) });
$("pictures").onclick = (event) => {
  const box = event.target.closest("[data-open]");
  if (box) {
    const o = Number(box.dataset.open);
    go({ o, s: walk().first.get(o) ?? state.s });
    return;
  }
  const key = event.target.closest("g.node")?.querySelector("title")?.textContent ?? "";
  const at = walk().steps.findIndex((s) => "ng".includes(key[0]) && s.node === Number(key.slice(1)));
  if (at >= 0) go({ s: at });
};
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("select")) return;
  const moves = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10 };
  if (moves[event.key]) go({ s: state.s + moves[event.key] });
  else if (event.key === "Home") go({ s: 0 });
  else if (event.key === "End") go({ s: walk().steps.length - 1 });
  else if (event.key === "Escape") go({ o: -1 });
  else if (event.key === " ") play(!playing);
  else return;
  event.preventDefault();
});
addEventListener("hashchange", fromHash);
addEventListener("resize", () => walk()?.steps.length && drawPicture());

if (T.walks.length > 1) {
  $("walk").hidden = false;
  $("walk").append(...T.walks.map((w, i) => {
    const option = el("option", "", `walk ${i + 1}: ${w.title}`.slice(0, 60));
    option.value = i;
    return option;
  }));
}
if (T.walks.length) fromHash();
else $("title").textContent = "no backward walk: tgx backward SCRIPT records one";
document.documentElement.dataset.ready = "1";
