"use strict";
const $ = id => document.getElementById(id);
const state = () => new URLSearchParams(location.hash.slice(1));
const remember = given => history.replaceState(null, "", "#" + given);
const words = JSON.parse($("words").textContent);
const say = (key, more = {}) => Object.entries(more).reduce((text, [name, value]) => text.replaceAll("{" + name + "}", value), words[key] ?? key);
const outcome = name => words["outcome." + name] ?? name.replaceAll("_", " ");
const make = (tag, text, more = {}) => Object.assign(document.createElement(tag), { textContent: text, ...more });

function list() {
  const body = $("runs").tBodies[0], rows = [...body.rows], heads = [...document.querySelectorAll("th button")];
  rows.forEach(row => { row.words = (row.textContent + " " + row.title).toLowerCase(); });
  function show() {
    const now = state(), terms = (now.get("q") || "").toLowerCase().split(/\s+/), ending = now.get("outcome") || "";
    $("q").value = now.get("q") || ""; $("outcome").value = ending;
    let shown = 0;
    for (const row of rows) {
      row.hidden = (ending && row.dataset.outcome !== ending) || !terms.every(w => row.words.includes(w));
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
    $("count").textContent = say("count", { shown, all: rows.length });
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
  const box = make("div", "", { className: "scroll", tabIndex: 0 }), t = make("table", ""), head = t.createTHead().insertRow(), body = t.createTBody();
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
    for (const [name, r] of runs) $(id).append(new Option(name.startsWith("v") ? say("version", { version: name.slice(1) }) : name + " · " + outcome(r.row.outcome), name));
    $(id).addEventListener("change", () => { const now = state(); now.set(id, $(id).value); remember(now); show(); });
  }
  function show() {
    const now = state(), names = [now.get("a"), now.get("b")], [one, other] = names.map(n => runs.get(n)), out = $("result");
    $("a").value = one ? names[0] : ""; $("b").value = other ? names[1] : "";
    out.replaceChildren();
    if (!one || !other) { out.append(make("p", say("choose"))); return; }
    const rows = [["ended", r => outcome(r.outcome)], ["began", r => (r.started || "").slice(0, 16).replace("T", " ")], ["data", r => r.data], ["dataset", r => (r.dataset || "").slice(0, 16)], ["trigger", r => r.trigger && (words["trigger." + r.trigger.replaceAll(" ", "_")] ?? r.trigger)], ["number", r => r.version]];
    out.append(make("h2", say("what")), table(["", names[0], names[1]], rows.map(([n, f]) => [say(n), f(one.row) || "–", f(other.row) || "–"])));
    out.append(make("h2", say("good")));
    const a = one.verdicts, b = other.verdicts, same = a && b && a.test && a.test === b.test && data.tests[a.test];
    if (same) measured(out, names, a, b, same); else {
      out.append(make("p", say("not_same")));
      const keys = ["f1", "precision", "caught", "flagged", "caught_disguised", "flagged_disguised"];
      out.append(table([say("per_cent"), names[0], names[1]], keys.map(k => [say(k), percent(one.row[k]), percent(other.row[k])])));
    }
    const keys = [...new Set([...Object.keys(one.settings), ...Object.keys(other.settings)])].sort().filter(k => one.settings[k] !== other.settings[k]);
    out.append(make("h2", say("settings")), keys.length ? table([say("setting"), names[0], names[1]], keys.map(k => [k, one.settings[k] ?? say("default"), other.settings[k] ?? say("default")])) : make("p", say("none")));
  }
  function measured(out, names, a, b, test) {
    const n = test.rows, labels = bits(test.labels, n), p = bits(a.flags, n), q = bits(b.flags, n), cells = new Float64Array(8), flips = [];
    for (let i = 0; i < n; i++) { cells[4 * labels[i] + 2 * p[i] + q[i]]++; if (p[i] !== q[i]) flips.push(i); }
    const x = figures(cells, 2), y = figures(cells, 1), spans = intervals(cells, n);
    const lines = ["f1", "precision", "caught", "flagged"].map((name, k) => {
      const [low, high] = spans[k], up = k === 3 ? high < 0 : low > 0, down = k === 3 ? low > 0 : high < 0;
      const cell = make("td", signed(y[k] - x[k]) + " (" + signed(low) + " … " + signed(high) + "), " + say(up ? "better" : down ? "worse" : "chance"), { className: up ? "better" : down ? "worse" : "" });
      return [say(name), percent(x[k]), percent(y[k]), cell];
    });
    out.append(table([say("per_cent"), names[0], names[1], say("difference")], lines), make("p", say("same", { n })));
    out.append(make("h2", say("flipped")), make("p", say("flips", { flips: flips.length, n })));
    const verdict = v => say(v ? "was_flagged" : "was_not"), some = flips.filter(i => test.texts[i]).slice(0, 100);
    if (some.length) out.append(table([say("comment"), say("label"), names[0], names[1]], some.map(i => [test.texts[i], say(labels[i] ? "toxic" : "clean"), verdict(p[i]), verdict(q[i])])));
  }
  addEventListener("hashchange", show); show();
}
if ($("runs")) list();
if ($("pair")) pair();
