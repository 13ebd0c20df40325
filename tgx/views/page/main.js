// Start, header, keys, tooltips.

const KEYS = [["/", "search"], ["j k", "next and previous kernel"], ["l", "go in: a group, a kernel's UOps"], ["h", "go out one level"], ["Escape", "let go of the selection, then go out"],
  ["1 … 6", "the kernel pane's tabs"], ["[ ]", "previous and next rewrite"], ["+ − 0", "larger, smaller, fit"], ["c", "what colour means"], ["t", "light or dark"], ["?", "this help"]];

function header() {
  const e = T.env;
  byId("what").replaceChildren(el("b", { tip: [e.program, ...e.arguments].join(" ") }, (e.program || "trace").split("/").pop()), e.device ? " · " + e.device : "");
  const select = byId("schedule");
  const option = (s) => el("option", { value: s.id }, `${scheduleName(s)} · ${plural(s.kernels.length, "kernel")}${s.runs > 1 ? ` · ×${s.runs}` : ""}${place(s.frame) && !scheduleName(s).includes(place(s.frame)) ? " · " + place(s.frame) : ""}`);
  const steady = new Set(T.steady);
  const groups = [["run most often", T.schedules.filter((s) => steady.has(s.id))], ["the others", T.schedules.filter((s) => !steady.has(s.id))]];
  select.replaceChildren(...groups.filter(([, list]) => list.length).map(([label, list]) => el("optgroup", { label }, list.map(option))));
  select.hidden = T.schedules.length < 2;
  select.addEventListener("change", () => go({ ...DEFAULTS, s: +select.value, c: S.c }));
  byId("colour").addEventListener("change", (event) => go({ c: event.target.value }));
  const used = new Set(T.kernels.map((k) => k.phase));
  byId("phases").replaceChildren(...["forward", "backward", "optimizer", "data"].filter((p) => used.has(p)).map((phase) => el("button", { class: `phase tone-${phase}`, "data-phase": phase, "aria-pressed": true,
    onclick: () => { const now = S.h ? S.h.split(",") : []; go({ h: (now.includes(phase) ? now.filter((x) => x !== phase) : [...now, phase]).join(",") }); } }, phase)));
  const notes = [...e.missing];
  if (e.ended === "exception") notes.unshift("The program ended in an error: " + e.error);
  if (e.ended === "exit" && e.exit_code) notes.unshift(`The program exited with code ${e.exit_code}.`);
  if (e.ended === "unfinished") notes.unshift("The program was killed, or this trace was cut short: its last records may be missing.");
  byId("notes").replaceChildren(...notes.map((t) => el("p", {}, t)), el("button", { "aria-label": "hide", onclick: () => { byId("notes").hidden = true; } }, "×"));
  byId("notes").hidden = !notes.length;
}

painters.push(() => {
  byId("schedule").value = S.s;
  byId("colour").value = S.c;
  for (const b of byId("phases").children) b.setAttribute("aria-pressed", !hidden(b.dataset.phase));
});

function theme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  paint(true);
}

function help() {
  const dialog = byId("help");
  dialog.replaceChildren(el("h2", {}, "keys"), el("table", {}, KEYS.map(([key, text]) => el("tr", {}, el("th", {}, key.split(" ").map((k) => el("kbd", {}, k))), el("td", {}, text)))),
    el("p", {}, "Click anything: a line, a kernel, an arrow, a buffer, a moment. Double-click a kernel for its UOps. The address holds what you see; Back works."),
    el("form", { method: "dialog" }, el("button", {}, "close")));
  if (dialog.open) dialog.close();
  else dialog.showModal();
}

function move(step) {
  const { kernels, order } = scheduleFacts(S.s);
  const seen = kernels.filter((k) => !hidden(k.phase));
  if (!seen.length) return;
  const now = S.k >= 0 && order.has(S.k) ? order.get(S.k) : step > 0 ? -1 : kernels.length;
  const next = step > 0 ? seen.find((k) => order.get(k.id) > now) ?? seen[0] : [...seen].reverse().find((k) => order.get(k.id) < now) ?? seen[seen.length - 1];
  selectKernel(next.id);
}

function deeper() {
  if (S.in === "" && S.k >= 0) {
    const s = T.schedules.get(S.s), node = s && nodeAt(s.levels, S.g);
    const i = node?.[2]?.findIndex((child) => contains(child, S.k)) ?? -1;
    if (i >= 0 && members(node[2][i]).length > 1) go({ g: [S.g, i].filter((x) => x !== "").join(".") });
    else if (T.kernels.get(S.k).program >= 0) go({ in: "uops", n: "" });
  } else if (S.in === "uops") go({ tab: "steps" });
  else if (S.in === "" && !S.g) move(1);
}
function higher() {
  if (S.in === "step") go({ in: "uops" });
  else if (S.n) go({ n: parentPath(S.n) });
  else if (S.in) go({ in: "" });
  else if (S.g) go({ g: parentPath(S.g) });
}
function letGo() {
  if (!byId("found").hidden || document.activeElement === byId("search")) closeSearch();
  else if (S.u >= 0) go({ u: -1 });
  else if (S.in || S.n) higher();
  else if (S.k >= 0 || S.l || S.b >= 0) go({ k: -1, l: "", b: -1, p: -1, i: 0 });
  else higher();
}
async function match(direction) {
  const pass = S.p >= 0 && await loadPass(S.p);
  if (!pass) return;
  let j = S.i + direction;
  while (j >= 0 && j < pass.n && !pass.step(j).match) j += direction;
  if (j >= 0 && j < pass.n) go({ i: j, in: "step" }, true);
}

const ACTIONS = { "/": () => byId("search").focus(), j: () => move(1), k: () => move(-1), l: deeper, h: higher, "?": help, t: theme, "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), 0: () => zoom(0),
  "[": () => match(-1), "]": () => match(1), c: () => go({ c: { phase: "cost", cost: "bound", bound: "phase" }[S.c] ?? "phase" }) };
Object.keys(TABS).forEach((tab, i) => { ACTIONS[i + 1] = () => S.k >= 0 && go({ tab }); });

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input[type=search], select, textarea");
  if (event.key === "Escape") { if (!byId("help").open) letGo(); return; }
  if (event.target === byId("search")) {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") { event.preventDefault(); pick(event.key === "ArrowDown" ? 1 : -1); }
    if (event.key === "Enter") { if (picked < 0) pick(1); byId("found").querySelector(".hit.on")?.click(); }
    return;
  }
  if (typing || byId("help").open) return;
  const action = ACTIONS[event.key];
  if (action) { event.preventDefault(); action(); }
});

// **** tooltips: text of data-tip, at the pointer or at the focused element ****
function tipAt(event, text) {
  const tip = byId("tip");
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = shown(text);
  const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const y = event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18;
  tip.style.left = Math.max(4, x) + "px";
  tip.style.top = Math.max(4, y) + "px";
}
addEventListener("mousemove", (event) => {
  if (event.target.tagName === "CANVAS") return;
  tipAt(event, event.target.closest?.("[data-tip]")?.dataset.tip ?? "");
});

// **** the panes' borders can be dragged; a double click puts them back ****
function borders() {
  const main = document.querySelector("main");
  let held = "";
  const near = (event) => {
    const left = byId("program").getBoundingClientRect().left, right = byId("kernel").getBoundingClientRect().left;
    return Math.abs(event.clientX - left) < 5 ? "--left" : Math.abs(event.clientX - right) < 5 ? (main.classList.contains("wide") ? "--wide" : "--right") : "";
  };
  main.addEventListener("pointermove", (event) => {
    main.style.cursor = held || near(event) ? "col-resize" : "";
    if (!held) return;
    const box = main.getBoundingClientRect();
    const width = held === "--left" ? event.clientX - box.left : box.right - event.clientX;
    main.style.setProperty(held, Math.max(120, Math.min(box.width - 300, width)) + "px");
  });
  main.addEventListener("pointerdown", (event) => {
    held = near(event);
    if (held) { main.setPointerCapture(event.pointerId); event.preventDefault(); }
  });
  main.addEventListener("pointerup", () => { held = ""; });
  main.addEventListener("dblclick", (event) => { const which = near(event); if (which) main.style.removeProperty(which); });
}

async function start() {
  try {
    await loadCore();
  } catch (error) {
    byId("program").replaceChildren(el("p", { class: "quiet" }, `This page could not unpack its trace: ${error.message}. It needs a browser of 2023 or later.`));
    throw error;
  }
  header();
  byId("search").addEventListener("input", (event) => search(event.target.value));
  byId("theme").addEventListener("click", theme);
  byId("helpbutton").addEventListener("click", help);
  byId("stage").addEventListener("click", () => { if (S.u >= 0) go({ u: -1 }); });
  byId("stage").addEventListener("wheel", (event) => { if (event.ctrlKey) { event.preventDefault(); zoom(event.deltaY < 0 ? 1.1 : 1 / 1.1); } }, { passive: false });
  addEventListener("click", (event) => { if (!byId("searchbox").contains(event.target)) byId("found").hidden = true; });
  borders();
  addEventListener("popstate", () => paint());
  addEventListener("hashchange", () => paint());
  let waiting = 0;
  new ResizeObserver(() => { if (view?.fitted) zoom(0); }).observe(byId("stage"));
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(() => paint(true), 120); });
  paint(true);
  document.documentElement.dataset.ready = performance.now().toFixed(0); // milliseconds; the tests wait for it
}
start();
