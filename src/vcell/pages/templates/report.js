// The report: metrics from floor to ceiling; in each context a table of targets, genes, a heat map, cells.
const CALLED_MEASURED = 1, CALLED_PREDICTED = 2, TESTED = 4;
const KINDS = { right: "called rightly", wrong: "called wrongly", missed: "missed", quiet: "not changed" };

for (const id of ["scores", "by_context"]) { const table = document.getElementById(id); if (table) sortable(table); }
document.querySelector("[data-table=scores]").addEventListener("click", () => {
  const table = document.getElementById("scores");
  saveCsv("scores", [...table.tHead.rows[0].cells].map((c) => c.textContent), [...table.tBodies[0].rows].map((r) => [...r.cells].map((c) => c.dataset.value ?? c.textContent)));
});

chart(document.getElementById("place"), "range", `Filled: the prediction, with its 95 % interval. Open: references. 0 is the floor, 1 the ceiling (${DATA.ceiling}); marks far outside lie at the edge.`, (width) => {
  const edge = (at) => Math.max(-0.75, Math.min(1.75, at));
  const points = DATA.place.flatMap((m) => m.points.map((p) => ({ ...p, metric: m.key, x: edge(p.at) })));
  const scored = points.filter((p) => p.scored), others = points.filter((p) => !p.scored);
  const told = (p) => `${p.name}\n${p.metric} ${shown(p.value)}\n${Math.round(100 * p.at)} % of the way to the ceiling`;
  return {
    height: 60 + 34 * DATA.place.length, marginLeft: width < 500 ? 70 : 90, style: { background: "transparent" },
    x: { domain: [Math.min(-0.1, d3.min(points, (p) => p.x) ?? 0), Math.max(1.1, d3.max(points, (p) => p.x) ?? 1)], ticks: [0, 0.5, 1], tickFormat: (v) => ({ 0: "floor", 0.5: "half", 1: "ceiling" })[v], label: null },
    y: { domain: DATA.place.map((m) => m.key), label: null, tickSize: 0 },
    marks: [
      Plot.ruleY(DATA.place.filter((m) => m.room), { y: "key", x1: 0, x2: 1, stroke: colour("line"), strokeWidth: 8 }),
      Plot.text(DATA.place.filter((m) => !m.room), { y: "key", x: 0.5, text: () => "the floor is no worse than the ceiling", fill: colour("soft") }),
      Plot.dot(others, { x: "x", y: "metric", r: 4, stroke: colour("soft") }),
      Plot.ruleY(scored, { y: "metric", x1: (p) => edge(p.low), x2: (p) => edge(p.high), stroke: colour("predicted"), strokeWidth: 2.5 }),
      Plot.dot(scored, { x: "x", y: "metric", r: 5.5, fill: colour("predicted") }),
      Plot.tip(points, Plot.pointer({ x: "x", y: "metric", title: told })),
    ],
  };
});

// --- contexts
const columns = [
  ["effect", "effect", "size of the measured effect: length of the delta of the pseudobulk, in log1p units", 2],
  ["cells", "cells", "measured cells", 0], ["real", "changed", "genes that truly change", 0], ["right", "right", "called, and in the right direction", 0],
  ["wrong", "wrong", "called, but unchanged or in the other direction", 0], ["missed", "missed", "changed, not called", 0],
  ["own_real", "own gene, measured", "log2 fold change of the target's own gene", 2], ["own_pred", "own gene, predicted", "the same, as predicted", 2],
];

(DATA.contexts ?? []).forEach((context, number) => {
  const panel = element("section", { role: "tabpanel", id: `panel${number}`, "aria-label": context.name || "all cells", ...(number ? { hidden: "" } : {}) });
  document.getElementById("panels").append(panel);
  const rows = context.targets.map((target, i) => Object.fromEntries([["target", target], ["row", i], ...Object.entries(context.table).map(([key, values]) => [key, values[i]])]));
  for (const row of rows) { row.wrong = row.pred - row.right; row.missed = row.real - row.both; }
  let ready = null;
  const effects = () => (ready ??= Promise.all(["measured", "predicted", "p", "called"].map((key) => unpacked(context.effects[key])))
    .then(([measured, predicted, p, called]) => ({ measured: new Int8Array(measured.buffer), predicted: new Int8Array(predicted.buffer), p, called })));
  const n = context.effects.genes.length, unit = context.effects.limit / 127;
  const gene = (e, row, g) => {
    const at = row * n + g, called = e.called[at], measured = e.measured[at] * unit, predicted = e.predicted[at] * unit;
    const both = called & CALLED_MEASURED && called & CALLED_PREDICTED;
    const kind = both && measured * predicted >= 0 ? "right" : called & CALLED_PREDICTED ? "wrong" : called & CALLED_MEASURED ? "missed" : "quiet";
    return { gene: context.effects.genes[g], target: context.targets[row], measured, predicted, p: e.p[at] * context.effects.p_step, kind, tested: Boolean(called & TESTED) };
  };
  const first = number === 0;
  targetTable(panel, context, rows, effects, gene, n, first);
  geneSearch(panel, context, effects, gene, n, first);
  heatMap(panel, context, rows, first);
  cells(panel, context, first);
});

function heading(panel, id, text, first) { panel.append(element("h2", first ? { id } : {}, text)); }

function targetTable(panel, context, rows, effects, gene, n, first) {
  heading(panel, "targets", "Targets", first);
  const keys = [...columns, ...DATA.metrics.map((m) => [m.key, m.key, m.meaning, 3])];
  const search = element("input", { type: "search", placeholder: "find a target", "aria-label": "find a target" });
  const table = element("table", { class: "cards targets" },
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "target"), ...keys.map(([, label, meaning]) => element("th", { scope: "col", title: meaning }, label)))),
    element("tbody", {}, ...rows.map((row) => element("tr", { "data-target": row.target },
      element("td", {}, element("button", { class: "target", type: "button", "aria-expanded": "false", onclick: (event) => open(event.currentTarget.closest("tr"), row) }, row.target)),
      ...keys.map(([key, label, , digits]) => element("td", { "data-label": label, "data-value": row[key] ?? "", class: ["right", "wrong", "missed"].includes(key) ? key : null }, element("span", {}, shown(row[key], digits))))))));
  panel.append(
    element("p", { class: "soft no-print" }, "A target's name opens its genes: a volcano of the measured cells, and predicted against measured changes."),
    element("div", { class: "row" }, search, element("button", { class: "save", type: "button", onclick: () => saveCsv(`targets_${context.name || "all"}`, ["target", ...keys.map(([key]) => key)], rows.map((r) => [r.target, ...keys.map(([key]) => r[key])])) }, "CSV")),
    element("div", { class: "tall" }, table));
  sortable(table);
  search.addEventListener("input", () => {
    const text = search.value.trim().toLowerCase();
    for (const row of table.tBodies[0].rows) if (!row.classList.contains("detail")) {
      row.hidden = !row.dataset.target.toLowerCase().includes(text);
      if (row.nextElementSibling?.classList.contains("detail")) row.nextElementSibling.hidden = row.hidden;
    }
  });
  async function open(tr, row) {
    const button = tr.querySelector("button.target");
    if (tr.classList.toggle("open")) {
      // as wide as what is seen of the table, and staying in sight when it is scrolled sideways
      const place = element("div", { class: "inner", style: `width:${table.parentElement.clientWidth - 24}px` });
      tr.after(element("tr", { class: "detail" }, element("td", { class: "detail", colspan: keys.length + 1 }, place)));
      button.setAttribute("aria-expanded", "true");
      const e = await effects();
      volcano(place, d3.range(n).map((g) => gene(e, row.row, g)), row, context);
    } else {
      tr.nextElementSibling.remove();
      button.setAttribute("aria-expanded", "false");
    }
  }
}

function volcano(place, genes, row, context) {
  const changed = genes.filter((g) => g.kind !== "quiet"), quiet = genes.filter((g) => g.kind === "quiet").slice(0, 1500);
  const drawn = [...quiet, ...changed];
  const colours = { domain: Object.keys(KINDS), range: ["right", "wrong", "missed", "quiet"].map(colour) };
  const told = (g) => `${g.gene}: ${KINDS[g.kind]}\nmeasured ${shown(g.measured, 2)}, predicted ${shown(g.predicted, 2)}\nadjusted p ${g.tested ? (10 ** -g.p).toPrecision(1) : "not tested"}`;
  const charts = element("div", { class: "charts" });
  place.append(element("h3", {}, `${row.target}${context.name ? ` in ${context.name}` : ""}`),
    element("span", { class: "key" }, ...Object.entries(KINDS).map(([kind, words]) => element("b", { style: `color:var(--${kind})` }, element("span", { style: "color:var(--text);font-weight:400" }, words)))),
    charts);
  chart(charts, `volcano_${row.target}`, "Measured cells: log2 fold change, and how sure it is.", () => ({
    height: 320, marginLeft: 45, style: { background: "transparent" }, color: colours,
    x: { label: "measured log2 fold change", grid: true }, y: { label: "−log10 adjusted p" },
    marks: [Plot.ruleX([0], { stroke: colour("line") }), Plot.dot(drawn, { x: "measured", y: "p", fill: (g) => g.kind, r: (g) => (g.kind === "quiet" ? 1.5 : 3) }), Plot.tip(drawn, Plot.pointer({ x: "measured", y: "p", title: told }))],
  }));
  chart(charts, `predicted_${row.target}`, "Predicted against measured log2 fold change; on the line both agree.", () => ({
    height: 320, marginLeft: 45, style: { background: "transparent" }, color: colours,
    x: { label: "measured", grid: true }, y: { label: "predicted", grid: true },
    marks: [Plot.line([[-context.effects.limit, -context.effects.limit], [context.effects.limit, context.effects.limit]], { stroke: colour("line"), clip: true }),
      Plot.dot(drawn, { x: "measured", y: "predicted", fill: (g) => g.kind, r: (g) => (g.kind === "quiet" ? 1.5 : 3) }), Plot.tip(drawn, Plot.pointer({ x: "measured", y: "predicted", title: told }))],
  }));
}

function geneSearch(panel, context, effects, gene, n, first) {
  heading(panel, "gene", "A gene in every target", first);
  const list = element("datalist", { id: `genes_${context.name}` }, ...context.effects.genes.slice().sort().map((name) => element("option", { value: name })));
  const input = element("input", { list: list.id, placeholder: "type a gene", "aria-label": "type a gene", autocomplete: "off" });
  const place = element("div", { class: "gene" }, element("p", { class: "soft" }, "Its measured and predicted change under every target, the largest first."));
  const few = n < context.effects.n_genes ? `The ${n.toLocaleString("en")} genes that change most, of ${context.effects.n_genes.toLocaleString("en")}.` : "";
  panel.append(element("div", { class: "row" }, input, list, element("span", { class: "soft" }, few)), place);
  input.addEventListener("change", show);
  input.addEventListener("input", () => { if (context.effects.genes.includes(input.value.trim())) show(); });
  async function show() {
    const typed = input.value.trim();
    if (!typed) return;
    const g = context.effects.genes.findIndex((name) => name.toLowerCase() === typed.toLowerCase());
    if (g < 0) { place.replaceChildren(element("p", {}, `${typed} is not among the genes of this page. ${few}`)); return; }
    const e = await effects();
    const rows = context.targets.map((_, row) => gene(e, row, g)).sort((a, b) => Math.abs(b.measured) - Math.abs(a.measured));
    const drawn = rows.slice(0, 60);
    place.replaceChildren(element("h3", {}, context.effects.genes[g]));
    chart(place, `gene_${context.effects.genes[g]}`, `${rows.filter((r) => r.kind === "right").length} rightly called, ${rows.filter((r) => r.kind === "wrong").length} wrongly, ${rows.filter((r) => r.kind === "missed").length} missed, of ${rows.length} targets${drawn.length < rows.length ? `; the ${drawn.length} of largest measured change` : ""}.`, () => ({
      height: 60 + 15 * drawn.length, marginLeft: 110, style: { background: "transparent" },
      color: { domain: ["measured", "predicted"], range: [colour("measured"), colour("predicted")], legend: true },
      x: { label: "log2 fold change", grid: true }, y: { domain: drawn.map((r) => r.target), label: null },
      marks: [Plot.ruleX([0], { stroke: colour("line") }), Plot.ruleY(drawn, { y: "target", x1: "measured", x2: "predicted", stroke: colour("line") }),
        Plot.dot(drawn, { y: "target", x: "measured", fill: () => "measured" }), Plot.dot(drawn, { y: "target", x: "predicted", fill: () => "predicted" }),
        Plot.tip(drawn, Plot.pointerY({ y: "target", x: "measured", title: (r) => `${r.target}: ${KINDS[r.kind]}\nmeasured ${shown(r.measured, 2)}, predicted ${shown(r.predicted, 2)}` }))],
    }));
  }
}

function heatMap(panel, context, rows, first) {
  heading(panel, "heatmap", "All metrics of all targets", first);
  const scaled = (m, value) => (value - context.floor[m.key]) / (context.ceiling[m.key] - context.floor[m.key]);
  const kept = DATA.metrics.filter((m) => (context.ceiling[m.key] - context.floor[m.key]) * (m.higher ? 1 : -1) > 0);
  const sorted = [...rows].sort((a, b) => b.real - a.real);
  const cellsOf = sorted.flatMap((r) => kept.map((m) => ({ target: r.target, metric: m.key, value: r[m.key], at: r[m.key] === null ? null : Math.max(-1, Math.min(2, scaled(m, r[m.key]))) })));
  const box = element("div", { class: sorted.length > 30 ? "tall" : "" });
  panel.append(box);
  chart(box, `heatmap_${context.name || "all"}`, "The strongest measured effect first. White is the floor; blue is better, red worse.", (width) => ({
    height: 70 + 19 * sorted.length, marginLeft: 100, marginTop: 40, style: { background: "transparent" }, padding: 0.03,
    x: { domain: kept.map((m) => m.key), axis: "top", label: null, tickRotate: width < 500 ? -35 : 0 }, y: { domain: sorted.map((r) => r.target), label: null },
    color: { type: "diverging", scheme: "RdBu", domain: [-1, 1.5], pivot: 0, label: "floor to ceiling", legend: true, tickFormat: (v) => ({ "-1": "worse", 0: "floor", 1: "ceiling" })[v] ?? "" },
    marks: [Plot.cell(cellsOf, { x: "metric", y: "target", fill: "at" }),
      Plot.text(cellsOf, { x: "metric", y: "target", text: (c) => shown(c.value, 2), fill: (c) => (c.at === null || Math.abs(c.at) < 0.75 ? "black" : "white"), fontSize: 10 }),
      Plot.tip(cellsOf, Plot.pointer({ x: "metric", y: "target", title: (c) => `${c.target}, ${c.metric}: ${shown(c.value)}` }))],
  }));
}

function cells(panel, context, first) {
  heading(panel, "cells", "Cells", first);
  const points = context.cells.x.map((x, i) => ({ x, y: context.cells.y[i], kind: context.cells.kinds[context.cells.kind[i]], target: context.targets[context.cells.target[i]] ?? null }));
  const select = element("select", { "aria-label": "show one target" }, element("option", { value: "" }, "all targets"), ...context.targets.map((target) => element("option", {}, target)));
  panel.append(element("div", { class: "row" }, element("label", {}, "Show ", select)));
  const hue = (target) => d3.interpolateSinebow((context.targets.indexOf(target) * 0.618034) % 1);
  const draw = chart(panel, `cells_${context.name || "all"}`, "Measured cells (dots) and predicted ones (crosses) in two principal components of the measured ones, a colour a target; control cells in grey.", (width) => {
    const chosen = points.filter((p) => p.target !== null && (!select.value || p.target === select.value)), controls = points.filter((p) => p.target === null);
    return {
      height: Math.min(560, width * 0.75), style: { background: "transparent" }, x: { label: "component 1", ticks: 5 }, y: { label: "component 2", ticks: 5 },
      marks: [Plot.dot(controls, { x: "x", y: "y", fill: colour("quiet"), r: 1.5, fillOpacity: 0.6 }),
        Plot.dot(chosen.filter((p) => p.kind === "measured"), { x: "x", y: "y", fill: (p) => hue(p.target), r: 2.2, fillOpacity: 0.75 }),
        Plot.dot(chosen.filter((p) => p.kind === "predicted"), { x: "x", y: "y", stroke: (p) => hue(p.target), symbol: "times", r: 2.4 }),
        Plot.tip(chosen, Plot.pointer({ x: "x", y: "y", title: (p) => `${p.target}, ${p.kind}` }))],
    };
  });
  select.addEventListener("change", draw);
}

// --- tabs: arrow keys as everywhere
const tabs = [...document.querySelectorAll("[role=tab]")];
function choose(tab) {
  for (const other of tabs) {
    const mine = other === tab;
    other.setAttribute("aria-selected", String(mine));
    other.tabIndex = mine ? 0 : -1;
    document.getElementById(other.getAttribute("aria-controls")).hidden = !mine;
  }
  for (const redraw of redraws) redraw();
}
tabs.forEach((tab, i) => {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(i + step + tabs.length) % tabs.length];
    next.focus();
    choose(next);
  });
});
