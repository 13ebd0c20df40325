// Code: a small highlighter, and panes kept in step (source line ↔ UOp ↔ generated code).

const KEYWORDS = { __proto__: null, // names from a trace are looked up here: "constructor" is not a language
  python: "and as assert async await break class continue def del elif else except finally for from global if import in is lambda None nonlocal not or pass raise return True False try while with yield self",
  c: "void int long float double char unsigned signed short const static inline restrict struct union enum if else for while do return switch case break continue sizeof typedef extern bool half __attribute__ __global__ __shared__ __device__ uint8_t int8_t int32_t uint32_t int64_t uint64_t",
  llvm: "define declare target datalayout triple attributes ret br switch label phi load store getelementptr inbounds call tail fadd fsub fmul fdiv frem add sub mul sdiv udiv srem urem and or xor shl lshr ashr icmp fcmp select bitcast trunc zext sext fptrunc fpext fptosi fptoui sitofp uitofp extractelement insertelement shufflevector alloca ptr float double half void i1 i8 i16 i32 i64 eq ne slt sle sgt sge ult ule ugt uge oeq olt ole ogt oge fast nsw nuw noundef nocapture align fneg",
  asm: "", ptx: "", plan: "for in",
};
const COMMENT = { __proto__: null, python: "#", c: "//", llvm: ";", asm: "#", ptx: "//", uops: "←" };
const wordSets = { __proto__: null };

function highlight(text, language) {
  if (text.length > 600) return [text]; // a line full of quotes takes its length squared
  const known = (wordSets[language] ??= new Set((KEYWORDS[language] ?? KEYWORDS.c).split(" ").filter(Boolean)));
  const comment = COMMENT[language] ?? "//";
  const at = language === "asm" ? text.search(/[#;]/) : text.indexOf(comment);
  const quoted = /(["'])(?:\\.|(?!\1)[^\\])*\1/.exec(text);
  const code = at >= 0 && !(quoted && quoted.index < at && quoted.index + quoted[0].length > at) ? text.slice(0, at) : text;
  const out = [];
  const token = /((["'])(?:\\.|(?!\2)[^\\])*\2)|([%@$][\w.]+)|(\b0x[\da-fA-F]+\b|\b\d+\.?\d*(?:[eE][+-]?\d+)?f?\b)|([A-Za-z_]\w*)|(\s+)|([^\sA-Za-z_0-9"'%@$]+|.)/g;
  let first = true;
  for (const m of code.matchAll(token)) {
    let cls = "";
    if (m[1]) cls = "s";
    else if (m[3]) cls = "v";
    else if (m[4]) cls = "n";
    else if (m[5]) {
      if (known.has(m[5]) || ((language === "asm" || language === "ptx") && first)) cls = "k";
      else if (code[m.index + m[0].length] === "(") cls = "f";
      else if (language === "uops" && /^[A-Z][A-Z_]+$/.test(m[5])) cls = "k";
      first = false;
    }
    out.push(cls ? el("span", { class: "t" + cls }, m[0]) : m[0]);
  }
  if (code.length < text.length) out.push(el("span", { class: "tc" }, text.slice(code.length)));
  return out;
}

const MOST_LINES = 3000;

// The listing of UOps is made here: one line a UOp, what it reads by number, where it is from.
function uopsPane(graph) {
  const lines = [], uops = [];
  for (let i = 0; i < graph.n; i++) {
    const from = [graph.tensor_op(i), originPlace(graph.origins(i)[0])].filter(Boolean).join(" ");
    lines.push(`${String(i).padStart(4)}  ${graph.op(i)} ${graph.dtype(i)} ${short(graph.arg(i), 60)} ${graph.src(i).join(" ")}`.trimEnd() + (from ? `   ← ${from}` : ""));
    uops.push(i);
  }
  return [graph.kind === "ast" ? "ast" : "uops", "uops", lines.join("\n"), uops, []];
}

const PANE_WORDS = { __proto__: null, uops: "UOps", ast: "AST", source: "source", ir: "LLVM IR", ir_opt: "optimised IR", asm: "assembly", ptx: "PTX", sass: "SASS", plan: "plan" };
let panesShown = null; // levels the reader chose to see

function codeTab(detailOf, k) {
  const whole = detailOf?.ast; // the device wrote the program from this, as a whole: no line is one UOp's
  const graph = whole ?? detailOf?.uops ?? null, first = whole ? "ast" : "uops";
  const panes = [...(graph ? [uopsPane(graph)] : []), ...(detailOf?.code ?? []).filter(([level]) => level !== first || !graph)
    .map(([level, language, text, uops, ...more]) => [level, language, text, whole ? [] : uops, ...more])];
  if (!panes.length) return quiet(detailOf?.left_out ? "The code was left out of this page to keep it small." : "Its code was not recorded.", "code");
  const have = panes.map((p) => p[0]);
  const shown = (panesShown ?? [first, "source"]).filter((l) => have.includes(l));
  if (!shown.length) shown.push(have[0]);
  const pick = el("div", { class: "pick" }, have.map((l) => el("button", { class: shown.includes(l) ? "on" : "", "aria-pressed": shown.includes(l),
    onclick: () => { panesShown = shown.includes(l) ? shown.filter((x) => x !== l) : [...shown, l]; paint(true); } }, PANE_WORDS[l] ?? l)),
  el("span", { class: "quiet" }, whole ? (k.device.startsWith("TGX") ? "TGX wrote this program as a whole: its nodes are those of the AST" : "its UOps were not recorded: nodes are those of the AST") : "select a line: its fellows light up"));
  const columns = panes.filter((p) => shown.includes(p[0])).map((pane) => codeColumn(...pane));
  const box = el("div", { class: "panes" }, columns);
  requestAnimationFrame(() => inStep(box, graph));
  return [pick, box];
}

function codeColumn(level, language, text, uops, facts, inside) {
  const lines = text.split("\n");
  const list = el("ol", { class: "code" });
  lines.slice(0, MOST_LINES).forEach((line, i) => {
    const u = uops?.[i] ?? -1;
    list.append(el("li", { "data-u": u >= 0 ? u : undefined, "data-inside": inside?.[i]?.length ? inside[i].join(" ") : undefined, class: u >= 0 ? "has" : "" },
      el("span", { class: "no" }, i + 1), el("span", { class: "text" }, highlight(line, language || "c"))));
  });
  if (lines.length > MOST_LINES) list.append(el("li", { class: "skip" }, `${plural(lines.length - MOST_LINES, "line")} more are not shown`));
  list.addEventListener("click", (event) => {
    const u = event.target.closest("li")?.dataset.u;
    if (u !== undefined) go({ u: S.u === +u ? -1 : +u });
  });
  return el("div", { class: "column" }, el("h3", {}, PANE_WORDS[level] ?? level, facts.length ? el("small", {}, facts.map(([n, v]) => `${n}: ${v}`).join(" · ")) : ""), list);
}

// Light, in every pane, the lines of the selected UOp; or of the selected source line's UOps.
function inStep(root, graph) {
  let wanted = S.u >= 0 ? new Set([S.u]) : new Set();
  if (!wanted.size && S.l && graph) {
    for (let i = 0; i < graph.n; i++) {
      if (graph.origins(i).some((o) => originLine(o) === S.l)) wanted.add(i);
    }
  }
  for (const column of root.querySelectorAll(".column")) {
    let first = null;
    for (const li of column.querySelectorAll("li[data-u]")) {
      const lit = wanted.has(+li.dataset.u) || (li.dataset.inside ?? "").split(" ").some((u) => u && wanted.has(+u));
      li.classList.toggle("lit", lit);
      if (lit) first ??= li;
    }
    const list = column.querySelector("ol");
    if (first) {
      const a = first.getBoundingClientRect(), b = list.getBoundingClientRect();
      if (a.top < b.top || a.bottom > b.bottom) list.scrollTop += a.top - b.top - b.height / 3;
    }
  }
  // and in the source pane, the line the UOp came from
  document.querySelectorAll("#source li.from").forEach((li) => li.classList.remove("from"));
  if (S.u >= 0 && graph) for (const o of graph.origins(S.u)) {
    document.querySelector(`#source li[data-line="${originLine(o)}"]`)?.classList.add("from");
  }
}

// an operation's line in the user's source; a gradient's is its forward operation's
function originLine(id) {
  let o = T.origins.get(id);
  if (o && o.forward >= 0) o = T.origins.get(o.forward) ?? o;
  const f = o && T.frames.get(o.frame);
  return f ? `${f.file}:${f.line}` : "";
}
