// The source pane: the user's files, with each line's share of the time and its kernels.

let sourceFile = -1;

painters.push((changed) => {
  if (!any(changed, "s k l u b h")) return;
  const user = T.files.filter((f) => f.user && f.lines.length);
  const pane = byId("source");
  if (!user.length) {
    pane.replaceChildren(el("p", { class: "quiet" }, "The source was not recorded."));
    return;
  }
  const lit = litLines();
  const first = [...lit][0];
  if (first && any(changed, "k l u b")) sourceFile = +first.split(":")[0];
  if (!user.some((f) => f.id === sourceFile)) sourceFile = mostUsed(user);
  const file = T.files.get(sourceFile);
  const tabs = user.length > 1
    ? el("select", { "aria-label": "source file", onchange: (e) => { sourceFile = +e.target.value; paint(true); } },
      user.map((f) => el("option", { value: f.id, selected: f.id === sourceFile }, f.path)))
    : el("span", {}, file.path);
  paintSource(file, lit, tabs, any(changed, "s"));
});

// lines that belong to what is selected
function litLines() {
  const out = new Set();
  if (S.l) out.add(S.l);
  else if (S.b >= 0) for (const k of T.writers.get(S.b) ?? []) k.lines.forEach(([f, n]) => out.add(`${f}:${n}`));
  else if (S.k >= 0) T.kernels.get(S.k).lines.forEach(([f, n]) => out.add(`${f}:${n}`));
  return out;
}

function mostUsed(user) {
  const use = (f) => T.kernels.filter((k) => k.lines.some(([g]) => g === f.id)).length;
  return user.reduce((best, f) => (use(f) > use(best) ? f : best)).id;
}

function paintSource(file, lit, tabs, fresh = false) {
  const pane = byId("source");
  const facts = scheduleFacts(S.s);
  const shares = new Map(); // line -> {us, kernels, phases}
  for (const k of facts.kernels) {
    const own = k.lines.filter(([f]) => f === file.id);
    for (const [, n] of own) {
      const row = shares.get(n) ?? shares.set(n, { us: 0, kernels: [], phases: new Set() }).get(n);
      row.us += Math.max(k.us, 0) / k.lines.length; // a kernel's time is split among its lines
      row.kernels.push(k);
      row.phases.add(k.phase);
    }
  }
  const most = Math.max(1e-9, ...[...shares.values()].map((s) => s.us));
  const keep = pane.scrollTop;
  const list = el("ol", { class: "code", start: file.lines[0]?.[0] ?? 1 });
  let previous = null, quoted = false; // inside a string of several lines
  const strung = (text) => {
    const marks = text.split('"""').length - 1, before = quoted;
    if (marks % 2) quoted = !quoted;
    return before || marks % 2 ? [el("span", { class: "ts" }, text)] : highlight(text, "python");
  };
  for (const [n, text] of file.lines) {
    const share = shares.get(n);
    if (previous !== null && n > previous + 1) list.append(el("li", { class: "skip", "aria-hidden": true }, "⋯"));
    previous = n;
    const key = `${file.id}:${n}`;
    list.append(el("li", {
      value: n, "data-line": key, class: `${share ? "has" : ""} ${lit.has(key) ? "lit" : ""}`,
      tabindex: share ? 0 : undefined,
      tip: share ? `${plural(share.kernels.length, "kernel")}${share.us ? ", " + percent(share.us / facts.total) + " of the time" : ""}\n`
        + share.kernels.slice(0, 8).map((k) => k.name).join("\n") : undefined,
      onclick: share ? () => selectLine(key) : undefined,
      onkeydown: (e) => { if (e.key === "Enter" && share) selectLine(key); },
    }, el("span", { class: "no" }, n), el("span", { class: "text" }, ...strung(text)),
    share ? el("span", { class: "meter" }, [...share.phases].sort().map((p) => el("i", { class: `dot tone-${p}` })),
      el("span", { class: "count" }, share.kernels.length),
      el("span", { class: "bar" }, el("span", { style: `width:${Math.round((share.us / most) * 100)}%` }))) : null));
  }
  pane.replaceChildren(el("h2", {}, tabs ?? file.path), list);
  pane.scrollTop = keep;
  const target = list.querySelector(".lit") ?? (fresh && list.querySelector(".has"));
  if (target) {
    const a = target.getBoundingClientRect(), b = pane.getBoundingClientRect();
    if (a.top < b.top + 30 || a.bottom > b.bottom) pane.scrollTop += a.top - b.top - b.height / 3;
  }
}

function selectLine(key) {
  if (S.l === key) { go({ l: "" }); return; }
  // stay with the selected kernel if the line is one of its own, else show the line's slowest
  const here = (T.byLine.get(key) ?? []).filter((k) => scheduleFacts(S.s).has.has(k.id));
  const keep = here.some((k) => k.id === S.k);
  const slowest = here.reduce((a, b) => (b.us > (a?.us ?? -2) ? b : a), null);
  go({ l: key, b: -1, u: -1, ...(keep || !slowest ? {} : { k: slowest.id, p: -1, i: 0,
    ...(["uops", "step"].includes(S.in) ? { in: "", n: "" } : {}) }) });
}
