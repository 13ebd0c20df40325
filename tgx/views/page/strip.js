// The strip below: kernels in order on the device's clock, memory over time. And the roofline.

painters.push((changed) => {
  if (!any(changed, "s k l b c h")) return;
  const facts = scheduleFacts(S.s);
  const strip = byId("strip");
  strip.replaceChildren(
    el("div", { class: "time" }, el("h2", {}, "time", el("small", {}, facts.total ? `${time(facts.total)}: kernels in order, width is time` : "no kernel was timed: equal widths")), timeline(facts)),
    el("div", { class: "mem" }, ...memoryChart(facts)));
});

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const toneColours = {};
function colourOf(toneName, part = "--fill") {
  const key = toneName + part;
  if (!(key in toneColours)) {
    const probe = el("i", { class: "tone-" + toneName, hidden: true });
    document.body.append(probe);
    toneColours[key] = getComputedStyle(probe).getPropertyValue(part).trim() || "#999";
    probe.remove();
  }
  return toneColours[key];
}

function canvas(width, height, paintIt) {
  const c = el("canvas", { role: "img" }), dpr = window.devicePixelRatio || 1;
  c.width = width * dpr; c.height = height * dpr;
  c.style.width = width + "px"; c.style.height = height + "px";
  const g = c.getContext("2d");
  g.scale(dpr, dpr);
  paintIt(g);
  return c;
}

// Time bars: every kernel at least a hair wide, so that none disappears.
let slots = [];
function timeline(facts) {
  const width = Math.max(200, byId("strip").clientWidth * 0.62 - 40), height = 46;
  const n = facts.kernels.length, hair = Math.min(1, width / (2 * Math.max(n, 1)));
  const rest = width - hair * n;
  const lit = new Set(S.l ? (T.byLine.get(S.l) ?? []).map((k) => k.id) : []);
  if (S.b >= 0) for (const k of [...(T.readers.get(S.b) ?? []), ...(T.writers.get(S.b) ?? [])]) lit.add(k.id);
  const c = canvas(width, height, (g) => {
    let x = 0;
    slots = [];
    for (const k of facts.kernels) {
      const share = facts.total ? Math.max(k.us, 0) / facts.total : 1 / n;
      const w = hair + rest * share;
      slots.push([x, x + w, k]);
      g.globalAlpha = hidden(k.phase) ? 0.15 : 1;
      g.fillStyle = colourOf(tone(k));
      const tall = facts.most ? 6 + 30 * Math.sqrt(Math.max(k.us, 0) / facts.most) : 24;
      g.fillRect(x, height - 6 - tall, Math.max(w - (w > 3 ? 0.6 : 0), 0.5), tall);
      if (w > 44 && tall > 15) { // room for a name
        g.font = "11px system-ui, sans-serif";
        g.fillStyle = colourOf(tone(k), "--ink");
        let text = short(k.name, 80);
        while (text.length > 4 && g.measureText(text).width > w - 8) text = text.slice(0, -2).trimEnd() + (text.endsWith("…") ? "" : "…");
        g.fillText(text, x + 4, height - 6 - tall / 2 + 4, w - 6);
      }
      if (k.id === S.k || lit.has(k.id)) {
        g.globalAlpha = 1;
        g.fillStyle = css("--accent");
        g.fillRect(x, height - 5, Math.max(w, 2), 4);
      }
      x += w;
    }
  });
  const at = (event) => {
    const x = event.offsetX;
    return slots.find(([a, b]) => x >= a && x < b)?.[2];
  };
  c.setAttribute("aria-label", "kernels in order of time");
  c.addEventListener("click", (event) => { const k = at(event); if (k) selectKernel(k.id); });
  c.addEventListener("mousemove", (event) => { const k = at(event); tipAt(event, k ? `${k.name}\n${time(k.us) || "not timed"}  ${k.tg}` : ""); });
  c.addEventListener("mouseleave", () => tipAt(null, ""));
  return c;
}

// Memory: as measured; without measurements, what the schedule's buffers take kernel by kernel.
function memoryChart(facts) {
  let points, measured = T.memory.length > 0, peakText;
  if (measured) {
    points = T.memory.map(([at, used]) => [at, used]);
    const top = T.memory.reduce((a, b) => (b[1] > a[1] ? b : a));
    peakText = `peak ${bytes(top[1])}`;
  } else points = planned(facts).map((used, i) => [i, used]);
  const most = Math.max(0, ...points.map((p) => p[1]));
  if (!most) return [el("h2", {}, "memory", el("small", {}, "not recorded"))];
  peakText ??= `peak ${bytes(most)} (the schedule's buffers, not measured)`;
  const holders = atPeak(facts).slice(0, 4);
  const width = Math.max(120, byId("strip").clientWidth * 0.38 - 40), height = 46;
  const x0 = points[0][0], x1 = points[points.length - 1][0];
  const X = (x) => ((x - x0) / (x1 - x0 || 1)) * (width - 2), Y = (y) => height - 6 - (y / most) * (height - 10);
  const c = canvas(width, height, (g) => {
    g.beginPath();
    g.moveTo(0, height - 6);
    let before = 0;
    for (const [x, y] of points) { g.lineTo(X(x), Y(before)); g.lineTo(X(x), Y(y)); before = y; }
    g.lineTo(width, Y(before)); g.lineTo(width, height - 6);
    g.closePath();
    g.globalAlpha = 0.35; g.fillStyle = css("--accent"); g.fill();
    g.globalAlpha = 1; g.strokeStyle = css("--accent"); g.stroke();
  });
  c.setAttribute("aria-label", "memory over time");
  c.addEventListener("mousemove", (event) => {
    const x = x0 + (event.offsetX / width) * (x1 - x0);
    let i = points.findIndex((p) => p[0] > x);
    i = (i < 0 ? points.length : i) - 1;
    const p = points[Math.max(i, 0)];
    tipAt(event, measured ? `${bytes(p[1])} in use at ${time(p[0])}\n${T.memory[Math.max(i, 0)][3]} ${T.memory[Math.max(i, 0)][2] < 0 ? "freed" : "allocated"}` : `${bytes(p[1])} at ${facts.kernels[p[0]]?.name ?? ""}`);
  });
  c.addEventListener("mouseleave", () => tipAt(null, ""));
  c.addEventListener("click", () => go({ in: "memory", n: "" }));
  return [el("h2", {}, "memory", el("small", {}, peakText + (holders.length ? ": " : ""), holders.map((b, i) => [i ? ", " : "", el("button", { class: "link", onclick: () => go({ b: b.id, k: -1, l: "" }) }, short(b.name || "buffer " + b.id, 26))]))), c];
}

// what comes from outside, or is the program's own result, is there before and after
const life = (b, last) => (["input", "output", "constant"].includes(b.kind) ? [0, last] : [Math.max(b.first, 0), b.last < 0 ? last : Math.min(b.last, last)]);
function planned(facts) {
  const last = facts.kernels.length - 1;
  const change = new Float64Array(last + 3);
  for (const b of T.buffers) if (b.schedule === S.s && b.kind !== "arena") {
    const [from, to] = life(b, last);
    change[from] += b.nbytes;
    change[to + 1] -= b.nbytes;
  }
  const out = [];
  for (let i = 0, used = 0; i <= last; i++) out.push((used += change[i]));
  return out;
}
// the buffers alive at the peak, the biggest first
function atPeak(facts) {
  const used = planned(facts);
  if (!used.length) return [];
  const at = used.indexOf(Math.max(...used)), last = facts.kernels.length - 1;
  return T.buffers.filter((b) => b.schedule === S.s && b.nbytes && b.kind !== "arena" && life(b, last)[0] <= at && life(b, last)[1] >= at).sort((a, b) => b.nbytes - a.nbytes);
}

// Which buffers are alive while which kernel runs.
function lifetimesElement() {
  const facts = scheduleFacts(S.s), last = Math.max(facts.kernels.length - 1, 0);
  const own = T.buffers.filter((b) => b.schedule === S.s && b.nbytes).sort((a, b) => b.nbytes - a.nbytes || a.id - b.id);
  if (!own.length) return quiet("Buffers were not recorded.", "memory");
  const shown = own.slice(0, 60), peak = new Set(atPeak(facts));
  const used = planned(facts), top = Math.max(...used, 0), at = used.indexOf(top);
  const row = (b) => {
    const [from, to] = life(b, last), writer = (T.writers.get(b.id) ?? [])[0];
    return el("div", { class: `life ${S.b === b.id ? "lit" : ""}`, tabindex: 0, onclick: () => go({ b: b.id, k: -1, l: "" }) },
      el("span", { class: "name" }, b.name || "buffer " + b.id, peak.has(b) ? el("b", { tip: "alive at the peak" }, " ▲") : ""), el("span", { class: "num" }, bytes(b.nbytes)),
      el("span", { class: "track" }, el("span", { class: `span tone-${b.kind === "input" ? "data" : writer?.phase ?? "data"}`, tip: `kernels ${from + 1} to ${to + 1}`,
        style: `left:${(from / (last + 1)) * 100}%;width:${((to - from + 1) / (last + 1)) * 100}%` })));
  };
  return el("div", { class: "lives" }, el("p", { class: "quiet" }, `Peak ${bytes(top)} while kernel ${at + 1} of ${last + 1} runs (`, facts.kernels[at] ? kernelLink(facts.kernels[at].id) : "", "). ▲ alive at the peak.",
    own.length > 60 ? ` The 60 biggest of ${own.length} buffers.` : ""), shown.map(row));
}

// **** roofline ****
function rooflineElement() {
  const kernels = scheduleFacts(S.s).kernels.filter((k) => k.us > 0 && k.flops > 0 && k.bytes > 0);
  if (!kernels.length) return quiet("No kernel has both a time and an estimate of its work.", "time");
  return el("div", { class: "pad" }, roofline(kernels, Math.max(360, byId("stage").clientWidth - 40), Math.max(240, byId("stage").clientHeight - 130)),
    el("p", { class: "quiet" }, `Roof: ${T.roof[2]}, ${rate(T.roof[0], "F")} and ${rate(T.roof[1], "B")}. Right of the corner arithmetic is the limit, left of it memory.`));
}

function roofline(kernels, w, h) {
  const [peak, width] = T.roof;
  const dots = kernels.filter((k) => k.us > 0 && k.flops > 0 && k.bytes > 0).map((k) => ({ k, x: k.flops / k.bytes, y: flopsOf(k) }));
  if (!dots.length || !(peak > 0) || !(width > 0)) return null;
  const corner = peak / width, log = Math.log10;
  const xs = [...dots.map((d) => d.x), corner], ys = [...dots.map((d) => d.y), peak];
  const x0 = Math.floor(log(Math.min(...xs)) - 0.2), x1 = Math.ceil(log(Math.max(...xs)) + 0.4);
  const y0 = Math.floor(log(Math.min(...ys))), y1 = Math.ceil(log(Math.max(...ys)) + 0.05);
  const L = 62, B = 34, X = (v) => L + ((log(v) - x0) / (x1 - x0)) * (w - L - 12), Y = (v) => h - B - ((log(v) - y0) / (y1 - y0)) * (h - B - 12);
  const root = svg("svg", { width: w, height: h, class: "roofline", role: "img", "aria-label": "roofline" });
  for (let e = x0; e <= x1; e++) root.append(svg("line", { x1: X(10 ** e), x2: X(10 ** e), y1: 12, y2: h - B, class: "grid" }), svg("text", { x: X(10 ** e), y: h - B + 14, class: "tick mid" }, e < 0 ? 10 ** e : (10 ** e).toLocaleString("en")));
  for (let e = y0; e <= y1; e++) root.append(svg("line", { x1: L, x2: w - 12, y1: Y(10 ** e), y2: Y(10 ** e), class: "grid" }), svg("text", { x: L - 6, y: Y(10 ** e) + 4, class: "tick end" }, rate(10 ** e, "F")));
  root.append(svg("text", { x: (L + w) / 2, y: h - 4, class: "tick mid" }, "operations a byte"));
  root.append(svg("path", { class: "roof", d: `M${X(10 ** x0)} ${Y(Math.max(width * 10 ** x0, 10 ** y0))}L${X(corner)} ${Y(peak)}L${w - 12} ${Y(peak)}` }));
  const most = Math.max(...dots.map((d) => d.k.us)), named = [];
  if (w > 500) for (const d of [...dots].sort((a, b) => b.k.us - a.k.us).slice(0, 8)) { // the slowest say their names, where there is room
    const x = X(d.x) + 12, y = Y(d.y) + 4, text = short(d.k.name, 28), right = x + textWidth(text, 11) < w - 12;
    if (named.some(([nx, ny]) => Math.abs(nx - x) < 150 && Math.abs(ny - y) < 13)) continue;
    named.push([x, y]);
    root.append(svg("text", { class: right ? "tick" : "tick end", x: right ? x : x - 24, y }, text));
  }
  for (const { k, x, y } of dots) root.append(svg("circle", { cx: X(x), cy: Y(y), r: 3 + 7 * Math.sqrt(k.us / most), class: `dot tone-${tone(k)} ${k.id === S.k ? "chosen" : ""}`, tip: `${k.name}\n${rate(y, "F")}, ${x.toPrecision(3)} operations a byte\n${percent(k.of_roof)} of the roof`, onclick: () => selectKernel(k.id) }));
  return root;
}
