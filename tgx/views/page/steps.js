// Rewrites: the passes of a kernel's program (or its schedule), and one step at a time.
// A step is four numbers; drawing one touches only the nodes near it, so any step is quick.

let showUnchanged = false, passFilter = "", passOwner = "p", ownerChosen = false;

const passList = (k) => {
  const program = T.programs.get(k?.program)?.passes ?? [];
  const schedule = T.schedules.get(S.s)?.passes ?? [];
  return { p: program, s: schedule };
};

// who a pass belongs to ("p3", "s0"), and its line in the list
let passIndex = null;
function passOf(id) {
  passIndex ??= new Map([["p", T.programs], ["s", T.schedules]].flatMap(([kind, owners]) =>
    owners.flatMap((x) => x.passes.map((line) => [line[0], { owner: kind + x.id, line }]))));
  return passIndex.get(id);
}
const ownerOf = (id) => passOf(id)?.owner ?? "";
const passSummary = (id) => passOf(id)?.line ?? null;

async function loadPass(id) {
  const owner = ownerOf(id);
  const d = owner ? await detail("r" + owner) : null;
  const raw = d?.passes.find((p) => p.id === id);
  const graph = raw && d.table.get(raw.table);
  if (!graph) return null;
  const [kind, old, now, rule] = raw.columns ??= columns(raw.delta);
  const n = kind.length;
  const step = (i) => ({ match: kind[i] === 0, old: old[i], now: now[i], rule: rule[i] });
  return { id, raw, graph, n, step, owner };
}

// four columns, each written as distances from one number to the next
function columns(delta) {
  const n = delta.length / 4;
  return [0, 1, 2, 3].map((k) => {
    let sum = 0;
    return Int32Array.from({ length: n }, (_, i) => (sum += delta[k * n + i]));
  });
}

const clampStep = (i, n) => Math.max(0, Math.min(n - 1, i));

function stepsTab(k) {
  const lists = passList(k);
  if (!lists.p.length && !lists.s.length) {
    return quiet(T.env.level === "full" ? "This kernel's program has no recorded rewrites: it was compiled before the trace began, or served from a cache."
      : "Rewrites were not recorded: trace again with --level full.", "rewrite");
  }
  const changed = (list) => list.some((p) => p[3] > 0);
  if (!ownerChosen && S.p < 0) passOwner = changed(lists.p) || !changed(lists.s) ? "p" : "s";
  if (!lists[passOwner].length) passOwner = lists.p.length ? "p" : "s";
  // unpacked meanwhile, so that the first step is as quick as the others
  setTimeout(() => { detail("rp" + k.program); detail("rs" + k.schedule); }, 50);
  const root = el("div", { class: "steps" });
  const list = el("div", { class: "passes" });
  const fillList = () => {
    const rows = lists[passOwner].filter(([, name, , n]) => (showUnchanged || n > 0) && name.toLowerCase().includes(passFilter.toLowerCase()));
    const quietOnes = lists[passOwner].filter((p) => p[3] === 0).length;
    const most = Math.max(1, ...rows.map((p) => p[2]));
    const row = ([id, name, matches, n, depth]) => el("button", { class: `pass ${S.p === id ? "on" : ""}`, style: `padding-left:${8 + 12 * depth}px`,
      "data-pass": id, onclick: () => openPass(id), disabled: !n },
    el("span", { class: "name" }, name), el("span", { class: "count" }, n ? `${matches}` : "–"),
    el("span", { class: "bar" }, el("span", { style: `width:${(matches / most) * 100}%` })));
    const runs = []; // the same pass again and again is one line, until it is opened
    for (const p of rows) {
      const last = runs[runs.length - 1];
      if (last && last[0][1] === p[1] && last[0][4] === p[4]) last.push(p);
      else runs.push([p]);
    }
    list.replaceChildren(...runs.map((run) => (run.length < 4 ? run.map(row) : el("details", { class: "run", open: run.some((p) => p[0] === S.p) },
      el("summary", { style: `padding-left:${8 + 12 * run[0][4]}px` }, run[0][1], el("small", {}, ` ${run.length} times, ${plural(run.reduce((sum, p) => sum + p[2], 0), "match").replace("matchs", "matches")}`)), run.map(row)))).flat(),
    el("p", { class: "quiet" }, rows.length ? "" : passFilter ? "no pass by this name; " : "no pass changed anything; ", !showUnchanged && quietOnes ? `${quietOnes} ${quietOnes === 1 ? "pass" : "passes"} that changed nothing ${quietOnes === 1 ? "is" : "are"} hidden` : ""));
  };
  fillList();
  requestAnimationFrame(() => {
    const on = list.querySelector(".on");
    if (on) list.scrollTop = on.offsetTop - list.offsetTop - 40;
  });
  root.append(el("div", { class: "pick" },
    lists.p.length ? el("button", { class: passOwner === "p" ? "on" : "", onclick: () => { passOwner = "p"; ownerChosen = true; paint(true); } }, "this kernel") : null,
    lists.s.length ? el("button", { class: passOwner === "s" ? "on" : "", onclick: () => { passOwner = "s"; ownerChosen = true; paint(true); } }, "its schedule") : null,
    el("input", { type: "search", placeholder: "find a pass", value: passFilter, "aria-label": "find a pass", oninput: (e) => { passFilter = e.target.value; fillList(); } }),
    el("label", {}, el("input", { type: "checkbox", checked: !showUnchanged, onchange: (e) => { showUnchanged = !e.target.checked; fillList(); } }), "hide passes that changed nothing")),
  list);
  const view = el("div", { class: "step" });
  root.append(view);
  if (S.p >= 0) loadPass(S.p).then((pass) => view.replaceChildren(...(pass ? stepPanel(pass) : [el("p", { class: "quiet" }, "This pass's steps are not in this page.")])));
  return root;
}

// a pass opens on its first match; what comes before only rebuilds
async function openPass(id) {
  const pass = await loadPass(id);
  let i = 0;
  while (pass && i < pass.n - 1 && !pass.step(i).match) i++;
  go({ p: id, i, in: "step", tab: "steps" });
}

// one step of any pass, with a kernel it belongs to
function showStep(pass, i) {
  const owner = ownerOf(pass), id = +owner.slice(1);
  passOwner = owner[0];
  const k = T.kernels.find((x) => (owner[0] === "p" ? x.program : x.schedule) === id);
  if (k) selectKernel(k.id, { tab: "steps", p: pass, i, in: "step" });
}

// The rule's own source, the change as an expression, and the controls.
function stepPanel(pass) {
  const i = clampStep(S.i, pass.n), s = pass.step(i), rule = T.rules.get(s.rule);
  const to = (j) => go({ i: clampStep(j, pass.n), in: "step" }, true);
  const next = (dir) => { // the next real match, skipping what only follows from one
    let j = i + dir;
    while (j >= 0 && j < pass.n && !pass.step(j).match) j += dir;
    if (j >= 0 && j < pass.n) to(j);
  };
  const name = passSummary(pass.id)?.[1] ?? "pass";
  return [
    el("h3", {}, name, el("small", {}, `step ${i + 1} of ${pass.n}`)),
    el("div", { class: "stepper" }, el("button", { onclick: () => next(-1), tip: "the match before ([)", "aria-label": "previous match" }, "◀"),
      el("input", { type: "range", min: 0, max: pass.n - 1, value: i, "aria-label": "step", oninput: (e) => to(+e.target.value) }),
      el("button", { onclick: () => next(1), tip: "the next match (])", "aria-label": "next match" }, "▶")),
    rule ? el("div", { class: "rule" }, el("div", { class: "quiet" }, `${T.files.get(rule.file)?.path}:${rule.line} ${rule.fn}`),
      el("pre", {}, highlight(rule.text.trim(), "python"))) : el("p", { class: "quiet" }, "No rule of its own: the same node, rebuilt on its new sources."),
    el("div", { class: "change" }, el("div", { class: "gone" }, pass.graph.expression(s.old)), el("div", { class: "arrow" }, "↓"), el("div", { class: "come" }, pass.graph.expression(s.now))),
    originsOf(pass.graph, s.old),
  ].filter(Boolean);
}

function originsOf(graph, i) {
  const from = [...new Set(graph.origins(i).map((o) => `${T.origins.get(o)?.op ?? ""} ${place(T.origins.get(o)?.frame ?? -1)}`.trim()))].filter(Boolean);
  return from.length ? el("p", { class: "quiet" }, "from " + from.slice(0, 4).join(", ")) : null;
}

// The subgraph before and after, side by side in one drawing: gone dashed red, new green.
const NEAR = 24;
function below(graph, root, stop) {
  const found = new Set([root]);
  let edge = [root];
  while (edge.length && found.size < NEAR) {
    const following = [];
    for (const i of edge) for (const j of graph.src(i)) {
      if (found.has(j) || found.size >= NEAR) continue;
      found.add(j);
      if (!stop?.has(j)) following.push(j);
    }
    edge = following;
  }
  return found;
}

async function stepPicture() {
  const pass = S.p >= 0 ? await loadPass(S.p) : null;
  if (!pass) return quiet("Choose a pass in the kernel pane, under steps.", "rewrite");
  const s = pass.step(clampStep(S.i, pass.n)), g = pass.graph;
  const old = below(g, s.old), now = below(g, s.now, old);
  const shown = [...new Set([...old, ...now])].sort((a, b) => a - b).filter((i) => !g.isConst(i) || i === s.old || i === s.now);
  const at = new Map(shown.map((i, p) => [i, p]));
  const boxes = shown.map((i) => nodeBox(g, i, { mark: old.has(i) && now.has(i) ? "" : old.has(i) ? "removed" : "added", go: undefined }));
  const edges = [];
  for (const i of shown) for (const j of new Set(g.src(i))) if (at.has(j)) edges.push({ a: at.get(j), b: at.get(i), label: [] });
  const cut = shown.some((i) => g.src(i).some((j) => !at.has(j) && !g.isConst(j)));
  return { ...drawing(boxes, edges, { name: "one rewrite step" }), boxes, edges,
    notes: [`${g.op(s.old)} became ${g.op(s.now)}`, cut ? "what lies below is not drawn" : ""].filter(Boolean) };
}
