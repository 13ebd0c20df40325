// Search over everything: lines, kernels, operations, buffers, reasons, passes, rules; then code.

let searchToken = 0, picked = -1;

function searchCore(words) {
  const hits = [];
  const fits = (text) => { const t = text.toLowerCase(); return words.every((w) => t.includes(w)); };
  const add = (rank, kind, title, about, run) => hits.push({ rank, kind, title, about, run });
  for (const k of T.kernels) {
    if (fits(`${k.name} ${k.tg} ${k.ops.join(" ")} ${k.forward.join(" ")}`)) add(fits(k.name) ? 0 : 1, "kernel", k.name || k.tg, [k.tg, time(k.us)].filter(Boolean).join(" · "), () => selectKernel(k.id));
  }
  for (const f of T.files) if (f.user) for (const [n, text] of f.lines) if (fits(text) || fits(`${f.path}:${n}`)) {
    const kernels = T.byLine.get(`${f.id}:${n}`) ?? [];
    add(kernels.length ? 1 : 3, "line", text.trim(), `${f.path}:${n}${kernels.length ? `, ${plural(kernels.length, "kernel")}` : ""}`, () => (kernels.length ? selectLine(`${f.id}:${n}`) : go({ l: `${f.id}:${n}` })));
  }
  for (const b of T.buffers) if (b.name && fits(`${b.name} ${b.shape} ${b.dtype}`)) add(2, "buffer", b.name, `${b.shape} ${b.dtype} ${bytes(b.nbytes)}`, () => go({ b: b.id, k: -1, l: "", s: b.schedule >= 0 ? b.schedule : S.s }));
  const ops = new Map();
  for (const k of T.kernels) for (const op of k.ops) ops.set(op, (ops.get(op) ?? []).concat(k));
  for (const [op, kernels] of ops) if (fits(op)) add(0, "operation", op, plural(kernels.length, "kernel"), () => selectKernel(kernels.reduce((a, b) => (b.us > a.us ? b : a)).id, { tab: "ops" }));
  for (const b of T.boundaries) if (b.source >= 0 && fits(`${b.reason} ${b.brief} ${b.because} ${b.rule}`)) add(4, "reason", b.brief, T.kernels.get(b.source).name, () => selectKernel(b.source, { tab: "why" }));
  for (const [kind, owners] of [["p", T.programs], ["s", T.schedules]]) for (const owner of owners) for (const [id, name, matches, n] of owner.passes) if (n && fits(`${name} pass`)) {
    add(5, "pass", name, `${matches} ${matches === 1 ? "match" : "matches"} in ${kind === "p" ? owner.name : scheduleName(owner)}`, () => showStep(id, 0));
  }
  for (const rule of T.rules) if (rule.text && fits(`${rule.text} ${rule.fn}`)) add(6, "rule", rule.text.trim(), `${T.files.get(rule.file)?.path}:${rule.line}`, rule.pass >= 0 ? () => showStep(rule.pass, rule.step) : null);
  return hits.sort((a, b) => a.rank - b.rank).slice(0, 80);
}

async function searchCode(words, token, add) {
  let found = 0;
  for (const p of T.programs) {
    if (token !== searchToken || found > 20) return;
    const d = await detail("p" + p.id);
    const k = T.kernels.find((x) => x.program === p.id);
    if (!d || !k) continue;
    for (const [level, , text] of d.code) {
      const n = text.split("\n").findIndex((l) => words.every((w) => l.toLowerCase().includes(w)));
      if (n < 0) continue;
      found++;
      add({ kind: PANE_WORDS[level] ?? level, title: text.split("\n")[n].trim(), about: `${k.name}, line ${n + 1}`, run: () => { panesShown = [...new Set([...(panesShown ?? ["uops", "source"]), level])]; selectKernel(k.id, { tab: "code", u: d.code.find((c) => c[0] === level)[3]?.[n] ?? -1 }); } });
    }
  }
}

function search(text) {
  const token = ++searchToken, found = byId("found");
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  picked = -1;
  if (!words.length) { found.hidden = true; return; }
  const row = (hit) => el("button", { class: "hit", role: "option", disabled: !hit.run, onclick: () => { closeSearch(); hit.run?.(); } }, el("span", { class: "kind" }, hit.kind), el("span", { class: "what" }, short(hit.title, 90)), el("small", {}, hit.about));
  const hits = searchCore(words);
  found.replaceChildren(...hits.map(row));
  found.hidden = false;
  const last = el("p", { class: "quiet" }, words.join("").length > 1 ? "searching code…" : "");
  found.append(last);
  let more = 0;
  if (words.join("").length > 1) searchCode(words, token, (hit) => { if (token === searchToken) { more++; last.before(row(hit)); } })
    .then(() => { if (token === searchToken) last.textContent = hits.length + more ? "" : "nothing by this name"; });
}
function closeSearch() {
  searchToken++;
  byId("found").hidden = true;
  byId("search").value = "";
  byId("search").blur();
}
function pick(step) {
  const hits = [...byId("found").querySelectorAll(".hit:not([disabled])")];
  if (!hits.length) return;
  picked = (picked + step + hits.length) % hits.length;
  hits.forEach((h, i) => h.classList.toggle("on", i === picked));
  hits[picked].scrollIntoView({ block: "nearest" });
}
