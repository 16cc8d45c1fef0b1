"use strict";
const $ = id => document.getElementById(id);
const state = () => new URLSearchParams(location.hash.slice(1));
const remember = given => history.replaceState(null, "", "#" + given);
const make = (tag, text, more = {}) => Object.assign(document.createElement(tag), { textContent: text, ...more });

function list() {
  const body = $("runs").tBodies[0], rows = [...body.rows], heads = [...document.querySelectorAll("th button")];
  rows.forEach(row => { row.words = (row.textContent + " " + row.title).toLowerCase(); });
  function show() {
    const now = state(), words = (now.get("q") || "").toLowerCase().split(/\s+/), outcome = now.get("outcome") || "";
    $("q").value = now.get("q") || ""; $("outcome").value = outcome;
    let shown = 0;
    for (const row of rows) {
      row.hidden = (outcome && row.dataset.outcome !== outcome) || !words.every(w => row.words.includes(w));
      shown += !row.hidden;
    }
    const column = heads.findIndex(h => h.dataset.key === now.get("sort")), down = now.get("desc") === "1";
    heads.forEach((h, i) => h.parentNode.setAttribute("aria-sort", i !== column ? "none" : down ? "descending" : "ascending"));
    if (column >= 0) {
      const value = row => row.cells[column + 1].dataset.v, numeric = heads[column].parentNode.classList.contains("n")
        || heads[column].dataset.key === "version";
      const order = (a, b) => numeric ? a - b : a < b ? -1 : a > b ? 1 : 0;
      rows.sort((r, s) => {
        const a = value(r), b = value(s);
        return a === "" || b === "" ? (a === "") - (b === "") : (down ? -1 : 1) * order(a, b);
      });
      body.append(...rows);
    }
    $("count").textContent = shown + " of " + rows.length + " runs";
  }
  const change = (key, value) => { const now = state(); value ? now.set(key, value) : now.delete(key); remember(now); show(); };
  $("tools").addEventListener("submit", e => e.preventDefault());
  $("q").addEventListener("input", () => change("q", $("q").value));
  $("outcome").addEventListener("change", () => change("outcome", $("outcome").value));
  heads.forEach(h => h.addEventListener("click", () => {
    const now = state(), again = now.get("sort") === h.dataset.key;
    now.set("sort", h.dataset.key); now.set("desc", again && now.get("desc") === "1" ? "0" : "1"); remember(now); show();
  }));
  body.addEventListener("change", () => {
    const chosen = [...body.querySelectorAll("input:checked")].map(i => i.value);
    $("compare").href = "compare.html" + (chosen.length ? "#a=" + chosen[0] + (chosen[1] ? "&b=" + chosen[1] : "") : "");
  });
  addEventListener("hashchange", show); show();
}

const bits = (text, n) => {
  const bytes = atob(text), out = new Uint8Array(n);
  for (let i = 0; i < n; i++) out[i] = (bytes.charCodeAt(i >> 3) >> (7 - (i & 7))) & 1;
  return out;
};
// cells of label, verdict of one, verdict of the other; figures of one (bit 2) or the other (bit 1)
const figures = (cells, bit) => {
  let hit = 0, wrong = 0, alarm = 0, toxic = 0, clean = 0;
  for (let c = 0; c < 8; c++) {
    const flag = (c & bit) > 0;
    if (c > 3) { toxic += cells[c]; if (flag) hit += cells[c]; else wrong += cells[c]; }
    else { clean += cells[c]; if (flag) { alarm += cells[c]; wrong += cells[c]; } }
  }
  return [2 * hit / (2 * hit + wrong), hit / (hit + alarm), hit / toxic, alarm / clean];
};
function random(seed) {
  return () => { seed = seed + 0x6D2B79F5 | 0; let t = Math.imul(seed ^ seed >>> 15, 1 | seed); t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t; return ((t ^ t >>> 14) >>> 0) / 4294967296; };
}
function intervals(cells, n) {           // paired: the same comments are drawn for both
  const sums = [], next = random(1), draws = Math.max(200, Math.min(1000, Math.floor(3e6 / n))), all = [[], [], [], []];
  cells.reduce((s, x, i) => sums[i] = s + x, 0);
  for (let d = 0; d < draws; d++) {
    const drawn = new Float64Array(8);
    for (let i = 0; i < n; i++) { const u = next() * n; let c = 0; while (u >= sums[c]) c++; drawn[c]++; }
    const one = figures(drawn, 2), other = figures(drawn, 1);
    one.forEach((x, k) => { if (isFinite(other[k] - x)) all[k].push(other[k] - x); });
  }
  return all.map(x => { x.sort((a, b) => a - b); return [x[Math.floor(.025 * x.length)], x[Math.ceil(.975 * x.length) - 1]]; });
}
const percent = x => x === null || x === undefined || !isFinite(x) ? "–" : (100 * x).toFixed(1);
const signed = x => (x > 0 ? "+" : "") + (100 * x).toFixed(1);

function table(heads, lines) {
  const box = make("div", "", { className: "scroll" }), t = make("table", ""), head = t.createTHead().insertRow(), body = t.createTBody();
  heads.forEach(h => head.append(make("th", h)));
  lines.forEach(line => { const row = body.insertRow(); line.forEach(cell => row.append(cell instanceof Node ? cell : make("td", cell))); });
  box.append(t); return box;
}
function pair() {
  const data = JSON.parse($("data").textContent), runs = new Map();
  data.runs.forEach(r => runs.set(r.row.run, r));
  data.runs.slice().reverse().forEach(r => { if (r.row.version) runs.set("v" + r.row.version, r); });
  for (const id of ["a", "b"]) {
    $(id).append(new Option("", ""));
    for (const [name, r] of runs) $(id).append(new Option(name.startsWith("v") ? "version " + name.slice(1) : name + " · " + r.row.outcome, name));
    $(id).addEventListener("change", () => { const now = state(); now.set(id, $(id).value); remember(now); show(); });
  }
  function show() {
    const now = state(), names = [now.get("a"), now.get("b")], [one, other] = names.map(n => runs.get(n)), out = $("result");
    $("a").value = one ? names[0] : ""; $("b").value = other ? names[1] : "";
    out.replaceChildren();
    if (!one || !other) { out.append(make("p", "Choose two runs.")); return; }
    const rows = [["outcome", r => r.outcome], ["began", r => r.started], ["data", r => r.data], ["dataset", r => (r.dataset || "").slice(0, 16)], ["trigger", r => r.trigger], ["version", r => r.version]];
    out.append(make("h2", "What they are"), table(["", names[0], names[1]], rows.map(([n, f]) => [n, f(one.row) || "–", f(other.row) || "–"])));
    out.append(make("h2", "How good they are"));
    const a = one.verdicts, b = other.verdicts, same = a && b && a.test && a.test === b.test && data.tests[a.test];
    if (same) measured(out, names, a, b, same); else {
      out.append(make("p", "They were not measured on the same comments, or kept no scores: differences have no interval."));
      const keys = [["F1", "f1"], ["precision", "precision"], ["toxic caught", "caught"], ["clean flagged", "flagged"], ["caught in disguise", "caught_disguised"], ["flagged in disguise", "flagged_disguised"]];
      out.append(table(["per cent", names[0], names[1]], keys.map(([n, k]) => [n, percent(one.row[k]), percent(other.row[k])])));
    }
    const keys = [...new Set([...Object.keys(one.settings), ...Object.keys(other.settings)])].sort().filter(k => one.settings[k] !== other.settings[k]);
    out.append(make("h2", "Settings that differ"), keys.length ? table(["setting", names[0], names[1]], keys.map(k => [k, one.settings[k] ?? "default", other.settings[k] ?? "default"])) : make("p", "None."));
  }
  function measured(out, names, a, b, test) {
    const n = test.rows, labels = bits(test.labels, n), p = bits(a.flags, n), q = bits(b.flags, n), cells = new Float64Array(8), flips = [];
    for (let i = 0; i < n; i++) { cells[4 * labels[i] + 2 * p[i] + q[i]]++; if (p[i] !== q[i]) flips.push(i); }
    const x = figures(cells, 2), y = figures(cells, 1), spans = intervals(cells, n);
    const lines = ["F1", "precision", "toxic caught", "clean flagged"].map((name, k) => {
      const [low, high] = spans[k], up = k === 3 ? high < 0 : low > 0, down = k === 3 ? low > 0 : high < 0;
      const cell = make("td", signed(y[k] - x[k]) + " (" + signed(low) + " to " + signed(high) + ")" + (up ? ", better" : down ? ", worse" : ", may be chance"), { className: up ? "better" : down ? "worse" : "" });
      return [name, percent(x[k]), percent(y[k]), cell];
    });
    out.append(table(["per cent", names[0], names[1], "difference, 95 % paired"], lines), make("p", "Same " + n + " test comments for both."));
    out.append(make("h2", "Comments that flipped"), make("p", flips.length + " of " + n + " are judged differently."));
    const verdict = v => v ? "flagged" : "let through", some = flips.filter(i => test.texts[i]).slice(0, 100);
    if (some.length) out.append(table(["comment, masked", "is", names[0], names[1]], some.map(i => [test.texts[i], labels[i] ? "toxic" : "clean", verdict(p[i]), verdict(q[i])])));
  }
  addEventListener("hashchange", show); show();
}
if ($("runs")) list();
if ($("pair")) pair();
