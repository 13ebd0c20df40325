// The kernel pane: why here, ops, loops, code, steps, cost. Without a kernel: the whole, or a buffer.

const TABS = { why: "why here", ops: "ops", loops: "loops", code: "code", steps: "steps", cost: "cost" };
let paneToken = 0;

painters.push(() => document.querySelector("main").classList.toggle("wide", S.k >= 0 && S.tab === "code")); // code wants room

painters.push(async (changed) => {
  if (!any(changed, "s k l b u tab p i c")) return;
  const token = ++paneToken;
  const pane = byId("kernel");
  const k = T.kernels.get(S.k);
  if (!k) { pane.replaceChildren(...(S.b >= 0 ? bufferPage(T.buffers.get(S.b)) : scheduleFrontPage())); return; }
  const d = ["ops", "code"].includes(S.tab) ? await kernelDetail(k) : null;
  if (token !== paneToken) return;
  // another step, or another pass of the same list: the list stands, which may be a thousand passes
  if (S.tab === "steps" && !any(changed, "s k tab") && (S.p < 0 || pane.querySelector(`.pass[data-pass="${S.p}"]`))) { refreshStep(pane); return; }
  if (S.tab === "code" && !any(changed, "s k tab c") && pane.querySelector(".panes")) { inStep(pane.querySelector(".panes"), d?.ast ?? d?.uops); return; }
  const flops = flopsOf(k), slow = k.of_roof > 0 && k.of_roof < 1 / 3 && k.us > 5;
  const keep = pane.scrollTop;
  pane.replaceChildren(
    el("h2", {}, k.name || k.tg, el("span", { class: "figures" }, time(k.us) || "not timed", flops > 0 ? "  " + rate(flops, "F") : "",
      slow ? el("span", { class: "mark", tip: `reaches ${percent(k.of_roof)} of ${T.roof[2]}` }, " ▼ slow") : "")),
    el("p", { class: "under" }, el("i", { class: `dot tone-${k.phase}` }), k.phase, " · ", el("code", {}, k.tg), k.device ? " · " + k.device : "",
      T.programs.get(k.program)?.path ? " · path " + T.programs.get(k.program).path : ""),
    el("nav", { class: "tabs", role: "tablist" }, Object.entries(TABS).map(([tab, text]) => el("button", { role: "tab", "aria-selected": S.tab === tab, class: S.tab === tab ? "on" : "",
      "data-tab": tab, onclick: () => go({ tab }) }, text))),
    el("div", { class: "tab", role: "tabpanel" }, tabContent[S.tab] ? tabContent[S.tab](k, d) : null));
  pane.scrollTop = any(changed, "k tab") ? 0 : keep;
});

async function refreshStep(pane) {
  for (const b of pane.querySelectorAll(".pass.on")) b.classList.remove("on");
  pane.querySelector(`.pass[data-pass="${S.p}"]`)?.classList.add("on");
  const pass = await loadPass(S.p);
  if (pass) {
    const view = pane.querySelector(".step"), slider = view.querySelector("input[type=range]");
    const parts = stepPanel(pass);
    if (slider && document.activeElement === slider) { // keep the slider that is being dragged
      const fresh = el("div", {}, parts);
      const old = fresh.querySelector("input[type=range]");
      slider.value = S.i;
      old.replaceWith(slider);
      view.replaceChildren(...fresh.childNodes);
      slider.focus();
    } else view.replaceChildren(...parts);
  }
}

const kernelLink = (id) => {
  const k = T.kernels.get(id);
  return k ? el("button", { class: "link", onclick: () => selectKernel(id) }, el("i", { class: `dot tone-${k.phase}` }), k.name || k.tg) : "outside";
};
const bufferLink = (id) => {
  const b = T.buffers.get(id);
  return el("button", { class: "link", onclick: () => go({ b: id, k: -1, l: "" }) }, b.name || "buffer " + id, el("small", {}, ` ${b.shape} ${b.dtype} ${bytes(b.nbytes)}`));
};
const lineLink = (f, n) => el("button", { class: "link line", onclick: () => go({ l: `${f}:${n}` }) }, el("small", {}, `${T.files.get(f).path}:${n} `),
  el("code", {}, highlight((T.files.get(f).lines.find(([m]) => m === n)?.[1] ?? "").trim(), "python")));

function reason(b) {
  const chosen = S.b >= 0 && b.buffer === S.b;
  return el("div", { class: `reason ${chosen ? "lit" : ""}` },
    el("p", { class: "head" }, b.buffer >= 0 ? bufferLink(b.buffer) : "", el("span", { class: "brief" }, "⟂ " + b.brief)),
    el("p", {}, b.because),
    b.fuse_by ? el("p", { class: "fuse" }, el("b", {}, "To fuse: "), b.fuse_by) : null,
    b.without >= 0 ? el("p", { class: "quiet" }, `Proof: without this one decision the schedule has ${plural(b.without, "kernel")}.`) : null,
    el("p", { class: "quiet" }, b.rule ? ["Rule: tinygrad ", el("code", {}, b.rule)] : "", b.readers.length ? " · read by " : " · the program's own result", b.readers.slice(0, 8).map((r, i) => [i ? ", " : "", kernelLink(r)]),
      b.readers.length > 8 ? ` and ${b.readers.length - 8} more` : ""));
}

const tabContent = { __proto__: null,
  why(k) {
    const ends = T.ends.get(k.id) ?? [], begins = T.begins.get(k.id) ?? [];
    return [
      el("h3", {}, "why it ends where it ends"),
      ends.length ? ends.map(reason) : el("p", { class: "quiet" }, "No reason was recorded."),
      begins.length ? [el("h3", {}, "why it begins where it begins"), begins.map((b) => el("div", {}, el("p", { class: "quiet" }, "from ", b.source >= 0 ? kernelLink(b.source) : "outside"), reason(b)))] : null,
      el("h3", {}, "lines"), k.lines.length ? k.lines.map(([f, n]) => lineLink(f, n)) : el("p", { class: "quiet" }, "not known"),
      el("h3", {}, "reads"), k.reads.map((b) => el("div", {}, bufferLink(b))),
      el("h3", {}, "writes"), k.writes.map((b) => el("div", {}, bufferLink(b)))];
  },
  ops(k, d) {
    const origins = k.origins.map((o) => T.origins.get(o)).filter(Boolean);
    const graph = d?.ast ?? d?.uops;
    return [
      el("p", {}, k.ops.join(" → ") || "not recorded", k.forward.length ? el("span", { class: "quiet" }, `  gradient of ${k.forward.join(", ")}`) : ""),
      el("table", {}, el("thead", {}, el("tr", {}, ["operation", "line", "through", "name"].map((h) => el("th", {}, h)))),
        el("tbody", {}, origins.slice(0, 200).map((o) => el("tr", {}, el("td", {}, el("i", { class: `dot tone-${o.phase}` }), o.op), el("td", {}, place(o.frame),
          o.forward >= 0 ? el("small", {}, ` (forward: ${place(T.origins.get(o.forward)?.frame ?? -1)})`) : ""), el("td", {}, o.via.join(" → ")), el("td", {}, o.names.join(", ")))))),
      graph ? el("button", { class: "big", onclick: () => go({ in: "uops", n: "" }) }, d.ast ? `draw its AST: ${plural(graph.n, "node")}` : `draw its ${plural(graph.n, "UOp")}`) : el("p", { class: "quiet" }, "UOps were not recorded"),
      graph ? opCounts(graph) : null];
  },
  loops(k) {
    const p = T.programs.get(k.program);
    if (!p || !p.loops.length) return quiet("Its loop nest was not recorded.");
    return [el("h3", {}, "as it runs"), nest(p.loops, null), p.opts.length ? el("h3", {}, `how it got there: ${plural(p.opts.length, "decision")}`) : null,
      p.opts.map(([op, axis, amount, text, before, after], i) => el("details", { open: i === p.opts.length - 1 || p.opts.length < 4 }, el("summary", {}, el("b", {}, op), ` axis ${axis}, ${amount}  `, el("span", { class: "quiet" }, text)),
        el("div", { class: "two" }, el("div", {}, el("small", {}, "before"), nest(before, after)), el("div", {}, el("small", {}, "after"), nest(after, before))))),
      p.global.length ? el("p", { class: "quiet" }, `launch: global ${p.global.join("×")}${p.local.length ? `, local ${p.local.join("×")}` : ""}`) : null];
  },
  code: (k, d) => (k.kind === "copy" ? quiet("A copy has no code.") : codeTab(d, k)),
  steps: (k) => stepsTab(k),
  cost(k) {
    const facts = scheduleFacts(S.s), p = T.programs.get(k.program);
    const rows = [["time (median launch)", time(k.us) || "not measured"], ["share of its schedule", k.us >= 0 && facts.total ? percent(k.us / facts.total) : ""],
      ["calls", k.calls ? `${k.calls}, fastest ${time(k.min)}, together ${time(k.total)}` : ""], ["arithmetic (estimated)", k.flops >= 0 ? scaled(k.flops, 1000, ["", "k", "M", "G", "T"]).trim() + " operations" : ""],
      ["moves at least", bytes(k.bytes)], ["loads and stores", p && p.lds >= 0 ? bytes(p.lds) : ""], ["intensity", k.flops >= 0 && k.bytes > 0 ? (k.flops / k.bytes).toPrecision(3) + " operations a byte" : ""],
      ["reaches", [rate(flopsOf(k), "F"), rate(bytesOf(k), "B")].filter(Boolean).join(", ")], ["bound by", k.bound], ["of the roof", k.of_roof > 0 ? `${percent(k.of_roof)} (${T.roof[2]})` : ""],
      ["path", p?.path ? p.path + (p.path_reason ? ` (${p.path_reason})` : "") : ""], ["compiled in", p && p.compile_us >= 0 ? time(p.compile_us) : ""]];
    return [el("table", { class: "facts" }, rows.filter(([, v]) => v).map(([n, v]) => el("tr", {}, el("th", {}, n), el("td", {}, v)))),
      k.of_roof > 0 && k.of_roof < 1 / 3 ? el("p", { class: "mark" }, `▼ below a third of its roof`) : null, counted(k), roofline([k], 360, 220)];
  },
};

// What one launch did, counted (TGX_COUNT=1), beside tinygrad's estimates; and with which memory.
function counted(k) {
  const c = T.counts.get(k.id);
  if (!c) return null;
  const traffic = T.trafficOf.get(k.id) ?? [], n = c.calls, own = traffic.filter((t) => t.kind === "buffer");
  const moved = own.reduce((sum, t) => sum + t.loaded + t.stored, 0);
  const whole = (x) => Math.round(x).toLocaleString("en"), few = (x) => scaled(x, 1000, ["", "k", "M", "G", "T"]).trim(), times = (x, of) => (of > 0 ? +(x / of).toPrecision(3) + "×" : "");
  const beside = (x, estimate, show) => (estimate >= 0 ? el("small", {}, ` tinygrad estimates ${show(estimate / n)}${estimate > 0 ? ": " + times(x, estimate) : ""}`) : "");
  const facts = [["flops", whole(c.flops / n), beside(c.flops, c.est_flops, whole)], ["integer operations", whole(c.integer / n), ""], ["moved", bytes(moved / n), beside(moved, c.est_moved, bytes)]];
  const heads = [["memory", "a buffer, or what TGX puts beside them"], ["size", ""], ["loaded", "bytes that loads asked for"], ["× size", "how often each byte was loaded"], ["stored", "bytes stored"],
    ["L1 miss", "lines the first cache had not"], ["L2 miss", "lines the second cache had not: they come from memory"]];
  const rows = traffic.map((t) => {
    const b = T.buffers.get(t.buffer), size = b ? b.nbytes : -1;
    return el("tr", {}, el("td", {}, b ? el("button", { class: "link", onclick: () => go({ b: b.id, k: -1, l: "" }) }, b.name || "buffer " + b.id) : t.name),
      [bytes(size), t.loads ? bytes(t.loaded / n) : "", t.loads && size > 0 ? times(t.loaded / n, size) : "", t.stores ? bytes(t.stored / n) : "", few(t.l1 / n), few(t.l2 / n)].map((x) => el("td", { class: "num" }, x)));
  });
  const caches = T.env.caches.map(([name, size, ways]) => `${name} (${size >> 10} KiB, ${ways} ways)`).join(" and ");
  return el("section", { class: "counted" }, el("h3", {}, `counted: one launch of ${whole(n)}`),
    el("table", { class: "facts" }, facts.map(([name, value, note]) => el("tr", {}, el("th", {}, name), el("td", {}, value, note)))),
    el("table", {}, el("thead", {}, el("tr", {}, heads.map(([text, tip], i) => el("th", { tip, class: i ? "num" : "" }, text)))), el("tbody", {}, rows)),
    el("p", { class: "quiet" }, `Misses are a model's: ${caches}, empty when a launch begins.`));
}

function opCounts(graph) {
  const count = new Map();
  for (let i = 0; i < graph.n; i++) count.set(graph.op(i), (count.get(graph.op(i)) ?? 0) + 1);
  return el("p", { class: "quiet" }, [...count].sort((a, b) => b[1] - a[1]).map(([op, n]) => `${op} ${n}`).join(" · "));
}

const LOOP_WORDS = { __proto__: null, global: "global", thread: "threads", local: "local threads", warp: "warp", loop: "", reduce: "reduce", group_reduce: "reduce in a group", upcast: "vector", unroll: "unrolled", device: "devices" };
function nest(loops, other) {
  const known = new Set((other ?? loops).map(([n, s, kind]) => `${n} ${s} ${kind}`));
  return el("pre", { class: "nest" }, loops.map(([name, size, kind], i) => el("div", { class: known.has(`${name} ${size} ${kind}`) ? "" : "new", style: `padding-left:${i * 11}px` },
    el("span", { class: "tk" }, "for "), name, el("span", { class: "tk" }, " in "), el("span", { class: "tn" }, size), LOOP_WORDS[kind] ? el("span", { class: "tc" }, ` (${LOOP_WORDS[kind]})`) : "")));
}

// Nothing selected: what this schedule is, and its slowest kernels.
function scheduleFrontPage() {
  const s = T.schedules.get(S.s), facts = scheduleFacts(S.s);
  const slow = [...facts.kernels].sort((a, b) => b.us - a.us).slice(0, 12);
  const reasons = new Map();
  for (const k of facts.kernels) for (const b of T.ends.get(k.id) ?? []) (reasons.get(b.reason) ?? reasons.set(b.reason, []).get(b.reason)).push(b);
  const e = T.env;
  return [el("h2", {}, s ? scheduleName(s) : e.program), el("p", { class: "under" }, plural(facts.kernels.length, "kernel"), facts.total ? `, ${time(facts.total)} in all` : "", facts.total && s?.wall > facts.total ? ` of the ${time(s.wall)} a run takes: the rest is Python and waiting` : "",
    s ? `, run ${plural(s.runs, "time")}` : "", s && place(s.frame) ? `, asked for at ${place(s.frame)}` : "", s?.cache_hits ? `, ${plural(s.cache_hits, "schedule-cache hit")}` : ""),
  el("h3", {}, "where the time goes"), el("table", { class: "rank" }, slow.map((k) => el("tr", {}, el("td", {}, kernelLink(k.id)), el("td", { class: "num" }, time(k.us)), el("td", { class: "num" }, facts.total && k.us >= 0 ? percent(k.us / facts.total) : "")))),
  reasons.size ? [el("h3", {}, "why kernels end where they end"), el("table", { class: "rank" }, [...reasons].sort((a, b) => b[1].length - a[1].length).slice(0, 12).map(([name, list]) =>
    el("tr", {}, el("td", { class: "num" }, `${list.length} ×`), el("td", {}, el("button", { class: "link", tip: list[0].because, onclick: () => selectKernel(list[0].source, { tab: "why" }) }, name.replaceAll("-", " ")), el("small", {}, ` e.g. ${list[0].brief}`)))))] : null,
  el("h3", {}, "run"), el("table", { class: "facts" }, [["program", [e.program, ...e.arguments].join(" ")], ["device", e.device], ["tinygrad", e.tinygrad], ["Python", e.python], ["machine", e.machine], ["recorded", e.level === "full" ? "with rewrites" : "without rewrites"],
    ["memory planner", s && s.unplanned > 0 ? `${bytes(s.planned)} of ${bytes(s.unplanned)}` : ""], ["settings", e.settings.map(([n, v]) => `${n}=${v}`).join(" ")]].filter(([, v]) => v).map(([n, v]) => el("tr", {}, el("th", {}, n), el("td", {}, v))))].flat().filter(Boolean);
}

function bufferPage(b) {
  const writers = T.writers.get(b.id) ?? [], readers = T.readers.get(b.id) ?? [];
  const why = T.boundaries.filter((x) => x.buffer === b.id);
  const sharing = T.buffers.filter((x) => x.base >= 0 && x.base === b.base && x.id !== b.id);
  return [el("h2", {}, b.name || "buffer " + b.id, el("span", { class: "figures" }, bytes(b.nbytes))), el("p", { class: "under" }, [b.kind, b.shape, b.dtype, b.device].filter(Boolean).join(" · ")),
    el("h3", {}, "why it is stored"), ...(why.length ? why.map(reason) : [el("p", { class: "quiet" }, b.kind === "input" ? "It comes from outside this schedule." : "No reason was recorded.")]),
    el("h3", {}, "written by"), ...writers.map((k) => el("div", {}, kernelLink(k.id))), el("h3", {}, "read by"), ...readers.slice(0, 60).map((k) => el("div", {}, kernelLink(k.id))),
    ...(b.base >= 0 ? [el("h3", {}, "placed by the memory planner"), el("p", {}, `at ${bytes(b.offset)} inside ${T.buffers.get(b.base)?.name || "an arena"}`), ...sharing.slice(0, 20).map((x) => el("div", {}, bufferLink(x.id)))] : [])];
}
