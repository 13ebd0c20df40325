// Layered layout, after Sugiyama: break cycles, give every box a row, order the rows so that few
// arrows cross, then place the boxes of a row as near to their neighbours as they can stand.
//
// layout(boxes, edges) sets x, y (centres) of each box {w, h}, and of each edge {a, b, lw, lh} its
// `points` and the place `lx, ly` of its label. Returns {w, h}.

const GAP_X = 26, GAP_Y = 26, MAX_ROW = 1500;

function layout(boxes, edges) {
  const n = boxes.length;
  if (!n) return { w: 0, h: 0 };
  const links = edges.filter((e) => e.a !== e.b);
  const forward = breakCycles(n, links);
  const rank = rows(n, forward, boxes);
  // Every edge becomes a chain of small dummies, one in each row it crosses; odd rows hold labels.
  const items = boxes.map((b, i) => ({ w: b.w, h: b.h, row: 2 * rank[i], box: i }));
  const chains = [];
  const long = forward.reduce((sum, e) => sum + 2 * (rank[e.b] - rank[e.a]), 0) > 5000;
  for (const e of forward) {
    const chain = [e.a];
    const from = 2 * rank[e.a], to = 2 * rank[e.b];
    if (!long) {
      const middle = e.edge.lw ? (from + 1) : -1;
      for (let row = from + 1; row < to; row++) {
        const label = row === middle;
        chain.push(items.length);
        items.push({ w: label ? e.edge.lw : 2, h: label ? e.edge.lh : 0, row, label: label ? e.edge : null });
      }
    }
    chain.push(e.b);
    chains.push(chain);
  }
  const rowsOf = [];
  items.forEach((it, i) => (rowsOf[it.row] ??= []).push(i));
  for (let r = 0; r < rowsOf.length; r++) rowsOf[r] ??= [];
  const up = items.map(() => []), down = items.map(() => []);
  for (const chain of chains) for (let i = 1; i < chain.length; i++) {
    down[chain[i - 1]].push(chain[i]);
    up[chain[i]].push(chain[i - 1]);
  }
  order(items, rowsOf, up, down);
  placeX(items, rowsOf, up, down);
  let y = 0;
  for (const row of rowsOf) {
    const height = Math.max(0, ...row.map((i) => items[i].h));
    for (const i of row) items[i].y = y + height / 2;
    if (height || row.some((i) => items[i].box !== undefined)) y += height + GAP_Y / 2;
    else y += GAP_Y / 3;
  }
  const left = Math.min(...items.map((it) => it.x - it.w / 2));
  for (const it of items) it.x -= left;
  boxes.forEach((b, i) => { b.x = items[i].x; b.y = items[i].y; });
  chains.forEach((chain, c) => {
    const { edge, flipped } = forward[c];
    const points = chain.map((i) => [items[i].x, items[i].y]);
    const a = items[chain[0]], b = items[chain[chain.length - 1]];
    const room = (it, toward) => clampTo(toward - it.x, it.w / 2 - 8);
    points[0] = [a.x + room(a, points[1][0]) * 0.6, a.y + a.h / 2];
    points[points.length - 1] = [b.x + room(b, points[points.length - 2][0]) * 0.6, b.y - b.h / 2];
    const smooth = straighten(points);
    edge.points = flipped ? smooth.reverse() : smooth;
    const label = chain.map((i) => items[i]).find((it) => it.label === edge);
    [edge.lx, edge.ly] = label ? [label.x, label.y] : middleOf(points);
  });
  for (const e of edges) if (e.a === e.b) e.points = [];
  return { w: Math.max(...items.map((it) => it.x + it.w / 2)), h: y };
}

// Leave out the points a straight line passes near anyway (Ramer, Douglas and Peucker).
function straighten(points, near = 9) {
  if (points.length < 3) return points;
  const [x0, y0] = points[0], [x1, y1] = points[points.length - 1];
  let far = 0, at = 0;
  for (let i = 1; i < points.length - 1; i++) {
    const off = Math.abs(x0 + ((points[i][1] - y0) / (y1 - y0 || 1)) * (x1 - x0) - points[i][0]);
    if (off > far) { far = off; at = i; }
  }
  if (far <= near) return [points[0], points[points.length - 1]];
  return [...straighten(points.slice(0, at + 1), near).slice(0, -1), ...straighten(points.slice(at), near)];
}

const clampTo = (v, limit) => Math.max(-limit, Math.min(limit, v));
const middleOf = (points) => {
  const i = points.length >> 1;
  return [(points[i - 1][0] + points[i][0]) / 2, (points[i - 1][1] + points[i][1]) / 2];
};

// Depth-first: an arrow back to a box still being visited is turned around.
function breakCycles(n, links) {
  const out = Array.from({ length: n }, () => []);
  for (const e of links) out[e.a].push(e);
  const state = new Uint8Array(n), forward = [];
  for (let root = 0; root < n; root++) {
    if (state[root]) continue;
    const stack = [[root, 0]];
    state[root] = 1;
    while (stack.length) {
      const top = stack[stack.length - 1];
      const e = out[top[0]][top[1]++];
      if (!e) { state[top[0]] = 2; stack.pop(); continue; }
      if (state[e.b] === 1) forward.push({ a: e.b, b: e.a, edge: e, flipped: true });
      else {
        forward.push({ a: e.a, b: e.b, edge: e, flipped: false });
        if (!state[e.b]) { state[e.b] = 1; stack.push([e.b, 0]); }
      }
    }
  }
  return forward;
}

// A row for every box: below all it reads, then as near as possible to its readers.
function rows(n, forward, boxes) {
  const out = Array.from({ length: n }, () => []), inn = Array.from({ length: n }, () => []);
  const waiting = new Int32Array(n);
  for (const e of forward) { out[e.a].push(e.b); inn[e.b].push(e.a); waiting[e.b]++; }
  const rank = new Int32Array(n), queue = [];
  for (let i = 0; i < n; i++) if (!waiting[i]) queue.push(i);
  for (let q = 0; q < queue.length; q++) for (const b of out[queue[q]]) {
    rank[b] = Math.max(rank[b], rank[queue[q]] + 1);
    if (!--waiting[b]) queue.push(b);
  }
  for (const i of [...queue].reverse()) {
    if (!inn[i].length && out[i].length) rank[i] = Math.min(...out[i].map((b) => rank[b])) - 1;
  }
  // a row wider than a screen is cut into several
  const byRow = [];
  for (let i = 0; i < n; i++) (byRow[rank[i]] ??= []).push(i);
  const cut = new Int32Array(n);
  let extra = 0;
  byRow.forEach((row, r) => {
    let width = 0;
    for (const i of row ?? []) {
      if (width && width + boxes[i].w > MAX_ROW) { extra++; width = 0; }
      width += boxes[i].w + GAP_X;
      cut[i] = r + extra;
    }
  });
  return cut;
}

function order(items, rowsOf, up, down) {
  const pos = new Float64Array(items.length);
  const number = (row) => row.forEach((i, p) => (pos[i] = p));
  rowsOf.forEach(number);
  const sweep = (row, near) => {
    const key = new Map(row.map((i) => {
      const of = near[i];
      return [i, of.length ? of.reduce((sum, j) => sum + pos[j], 0) / of.length : pos[i]];
    }));
    row.sort((a, b) => key.get(a) - key.get(b) || pos[a] - pos[b]);
    number(row);
  };
  let best = null, fewest = Infinity;
  for (let round = 0; round < 8; round++) {
    if (round % 2) for (let r = rowsOf.length - 2; r >= 0; r--) sweep(rowsOf[r], down);
    else for (let r = 1; r < rowsOf.length; r++) sweep(rowsOf[r], up);
    const now = crossings(rowsOf, down, pos);
    if (now < fewest) { fewest = now; best = rowsOf.map((row) => [...row]); }
    if (!now) break;
  }
  best?.forEach((row, r) => { rowsOf[r] = row; });
}

function crossings(rowsOf, down, pos) {
  let count = 0;
  for (const row of rowsOf) {
    const ends = row.flatMap((i) => down[i].map((j) => pos[j]).sort((a, b) => a - b));
    if (ends.length > 400) { count += ends.length; continue; }
    for (let i = 0; i < ends.length; i++) for (let j = i + 1; j < ends.length; j++) if (ends[i] > ends[j]) count++;
  }
  return count;
}

// Each row in turn wants to stand at its neighbours' mean; the order and the gaps are kept by
// isotonic regression (blocks of boxes that would overlap share their mean wish).
function placeX(items, rowsOf, up, down) {
  for (const row of rowsOf) {
    let x = 0;
    for (const i of row) { items[i].x = x + items[i].w / 2; x += items[i].w + gap(items[i]); }
  }
  for (let round = 0; round < 10; round++) {
    const downward = round % 2 === 0;
    for (let k = 0; k < rowsOf.length; k++) {
      const row = rowsOf[downward ? k : rowsOf.length - 1 - k];
      settle(items, row, (i) => {
        const near = downward ? up[i] : down[i];
        const both = round > 7 ? [...up[i], ...down[i]] : near;
        return both.length ? both.reduce((sum, j) => sum + items[j].x, 0) / both.length : items[i].x;
      });
    }
  }
}
const gap = (it) => (it.box === undefined && !it.label ? 8 : GAP_X);

function settle(items, row, wish) {
  const blocks = [];
  let offset = 0, before = null;
  for (const i of row) {
    const it = items[i];
    if (before) offset += before.w / 2 + it.w / 2 + Math.max(gap(before), gap(it)) / 2 + 4;
    before = it;
    let block = { sum: wish(i) - offset, weight: 1, members: [[i, offset]] };
    while (blocks.length && blocks[blocks.length - 1].sum / blocks[blocks.length - 1].weight > block.sum / block.weight) {
      const last = blocks.pop();
      block = { sum: last.sum + block.sum, weight: last.weight + block.weight, members: [...last.members, ...block.members] };
    }
    blocks.push(block);
  }
  for (const b of blocks) for (const [i, off] of b.members) items[i].x = b.sum / b.weight + off;
}
