// A training step as it is taught: forward runs down on the left, each gradient comes back up in the
// row of what it differentiates, and the optimizer stands at the right.
//
// layoutLanes(boxes, edges) wants of each box its `lane`, its `anchors` (boxes whose row it wants) and
// {w, h, foot}; it sets x, y, and of each edge its `path`. Returns {w, h, lanes}.

const LANES = [["data", "data"], ["forward", "forward  ↓"], ["backward", "backward  ↑"], ["optimizer", "optimizer"]];
const LANE_GAP = 58, ROW_GAP = 20, CELL_GAP = 12, CELL_WIDTH = 330, LANE_TOP = 26;

function layoutLanes(boxes, edges) {
  const row = laneRows(boxes, edges);
  const used = [...new Set(row)].sort((a, b) => a - b);
  const at = new Map(used.map((r, i) => [r, i]));
  const cells = new Map(); // "row lane" -> boxes
  boxes.forEach((b, i) => {
    b.row = at.get(row[i]);
    const key = b.row + " " + b.lane;
    (cells.get(key) ?? cells.set(key, []).get(key)).push(b);
  });
  const outer = (b) => b.h + (b.foot?.length ?? 0) * 13; // with what is written below (or above) it
  const rows = used.map(() => 0), widths = {};
  for (const [key, cell] of cells) {
    const [r, lane] = key.split(" ");
    if (lane === "backward") cell.reverse(); // it flows up
    let x = 0, y = 0, tall = 0, wide = 0;
    for (const b of cell) {
      b.slot = Math.max(b.w, ...(b.foot ?? []).map((f) => textWidth(f.text, 10.5)));
      if (x && (lane !== "forward" || x + b.slot > CELL_WIDTH)) { y += tall + CELL_GAP; x = 0; tall = 0; }
      [b.cx, b.cy] = [x, y];
      x += b.slot + CELL_GAP;
      wide = Math.max(wide, x - CELL_GAP);
      tall = Math.max(tall, outer(b));
    }
    cell.w = wide; cell.h = y + tall;
    rows[r] = Math.max(rows[r], cell.h);
    widths[lane] = Math.max(widths[lane] ?? 0, wide);
  }
  const tops = [];
  rows.reduce((y, h, i) => (tops[i] = y) + h + ROW_GAP, LANE_TOP);
  const bottom = tops[rows.length - 1] + rows[rows.length - 1];
  let left = 0;
  const lanes = [];
  for (const [lane, title] of LANES) if (widths[lane]) {
    lanes.push({ lane, title, x: left, w: widths[lane] });
    left += widths[lane] + LANE_GAP;
  }
  for (const [key, cell] of cells) {
    const [r, name] = key.split(" "), lane = lanes.find((l) => l.lane === name);
    for (const b of cell) {
      // a sub-row of the cell is centred, as the cell is in its row
      const fellows = cell.filter((c) => c.cy === b.cy), wide = fellows.reduce((sum, c) => sum + c.slot + CELL_GAP, -CELL_GAP);
      b.x = lane.x + (lane.w - wide) / 2 + b.cx + b.slot / 2;
      b.y = tops[r] + (rows[r] - cell.h) / 2 + b.cy + b.h / 2 + (b.lane === "backward" ? outer(b) - b.h : 0);
    }
  }
  routes(boxes, edges, lanes);
  return { w: left - LANE_GAP, h: bottom + 4, lanes };
}

// Forward: below all it reads, and as near as possible to what reads it. The others: beside those.
function laneRows(boxes, edges) {
  const row = boxes.map(() => -1);
  const own = boxes.map((b, i) => i).filter((i) => boxes[i].lane === "forward");
  const place = new Map(own.map((i, p) => [i, p]));
  const inner = edges.filter((e) => place.has(e.a) && place.has(e.b) && e.a !== e.b).map((e) => ({ a: place.get(e.a), b: place.get(e.b) }));
  const links = breakCycles(own.length, inner), out = own.map(() => []), waiting = own.map(() => 0), rank = own.map(() => 0);
  for (const e of links) { out[e.a].push(e.b); waiting[e.b]++; }
  const queue = own.map((_, p) => p).filter((p) => !waiting[p]);
  for (let q = 0; q < queue.length; q++) for (const b of out[queue[q]]) {
    rank[b] = Math.max(rank[b], rank[queue[q]] + 1);
    if (!--waiting[b]) queue.push(b);
  }
  for (const p of queue.reverse()) if (out[p].length) rank[p] = Math.min(...out[p].map((b) => rank[b])) - 1;
  own.forEach((i, p) => { row[i] = rank[p]; });
  const last = Math.max(0, ...rank);
  const around = boxes.map(() => []);
  for (const e of edges) { around[e.a].push(e.b); around[e.b].push(e.a); }
  for (const lane of ["backward", "optimizer", "data"]) {
    const todo = boxes.map((b, i) => i).filter((i) => boxes[i].lane === lane);
    const settle = (i, near, all) => {
      const known = near.map((j) => row[j]).filter((r) => r >= 0);
      if (known.length) row[i] = lane === "data" ? Math.min(...known) : all ? Math.max(...known) : known[0];
    };
    for (const i of todo) settle(i, boxes[i].anchors ?? [], false);
    if (lane === "optimizer") for (const i of todo) settle(i, around[i].filter((j) => boxes[j].lane === "backward"), true);
    for (let round = 0; round < 4; round++) for (const i of todo) if (row[i] < 0) settle(i, around[i], true);
    for (const i of todo) if (row[i] < 0) row[i] = lane === "data" ? 0 : last;
  }
  return row;
}

// Arrows: straight to the next box of the lane, along the lane's left side past others, and across
// lanes from side to side.
function routes(boxes, edges, lanes) {
  const slots = new Map(); // each box that needs the lane's side has its own track there
  const track = (e) => {
    const key = boxes[e.a].lane;
    const tracks = slots.get(key) ?? slots.set(key, []).get(key);
    if (!tracks.includes(e.a)) tracks.push(e.a);
    return lanes.find((l) => l.lane === key).x - 8 - 5 * (tracks.indexOf(e.a) % 8);
  };
  for (const e of edges) {
    const a = boxes[e.a], b = boxes[e.b];
    if (a === b) { e.path = ""; continue; }
    const foot = (x) => (x.foot?.length ?? 0) * 13;
    if (a.lane !== b.lane) e.kind += " across";
    if (a.lane === b.lane) {
      const down = b.y > a.y, up = a.lane === "backward";
      const y0 = down ? a.y + a.h / 2 + (up ? 0 : foot(a)) : a.y - a.h / 2 - (up ? foot(a) : 0);
      const y1 = down ? b.y - b.h / 2 - (up ? foot(b) : 0) : b.y + b.h / 2 + (up ? 0 : foot(b));
      const blocked = boxes.some((c) => c !== a && c !== b && c.lane === a.lane && (c.y - a.y) * (c.y - b.y) < 0
        && c.x - c.w / 2 < Math.max(a.x, b.x) + 4 && c.x + c.w / 2 > Math.min(a.x, b.x) - 4);
      const beside = Math.abs(a.y - b.y) < (a.h + b.h) / 2;
      if (beside) e.path = a.x < b.x ? side(a.x + a.w / 2, a.y, b.x - b.w / 2, b.y) : side(a.x - a.w / 2, a.y, b.x + b.w / 2, b.y);
      else if (!blocked) e.path = `M${r(a.x)} ${r(y0)}C${r(a.x)} ${r((y0 + y1) / 2)} ${r(b.x)} ${r((y0 + y1) / 2)} ${r(b.x)} ${r(y1)}`;
      else {
        const x = track(e), turn = Math.min(14, Math.abs(b.y - a.y) / 3) * Math.sign(b.y - a.y);
        e.path = `M${r(a.x - a.w / 2)} ${r(a.y)}C${r(x)} ${r(a.y)} ${r(x)} ${r(a.y)} ${r(x)} ${r(a.y + turn)}L${r(x)} ${r(b.y - turn)}C${r(x)} ${r(b.y)} ${r(x)} ${r(b.y)} ${r(b.x - b.w / 2)} ${r(b.y)}`;
      }
    } else e.path = a.x < b.x ? side(a.x + a.w / 2, a.y, b.x - b.w / 2, b.y) : side(a.x - a.w / 2, a.y, b.x + b.w / 2, b.y);
    [e.lx, e.ly] = [(a.x + b.x) / 2, (a.y + b.y) / 2];
  }
}
const side = (x0, y0, x1, y1) => `M${r(x0)} ${r(y0)}C${r((x0 + x1) / 2)} ${r(y0)} ${r((x0 + x1) / 2)} ${r(y1)} ${r(x1)} ${r(y1)}`;
