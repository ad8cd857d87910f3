// What every page has: its data, light and dark, tables that sort, charts that can be saved. Needs d3 and Plot.
"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// --- light and dark: as the system has it, or as chosen here
const redraws = [];
const wanted = matchMedia("(prefers-color-scheme: dark)");
function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim(); }
function setDark(dark) {
  document.documentElement.classList.toggle("dark", dark);
  document.getElementById("theme").textContent = dark ? "Light" : "Dark";
  for (const redraw of redraws) redraw();
}
document.getElementById("theme").addEventListener("click", () => setDark(!document.documentElement.classList.contains("dark")));
wanted.addEventListener("change", () => setDark(wanted.matches));
document.documentElement.classList.toggle("dark", wanted.matches);
document.getElementById("theme").textContent = wanted.matches ? "Light" : "Dark";

// --- numbers as people read them
function shown(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(digits);
}

// --- charts
function save(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
function standalone(figure) {
  const svg = figure.querySelector("svg:not([class*=swatch])").cloneNode(true);
  svg.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  svg.setAttribute("style", `background:${colour("ground")};color:${colour("text")};font-family:sans-serif`);
  return svg;
}
function saveSvg(figure, name) { save(new Blob([standalone(figure).outerHTML], { type: "image/svg+xml" }), `${name}.svg`); }
function savePng(figure, name) {
  const svg = standalone(figure), image = new Image(), scale = 2;
  const [width, height] = [Number(svg.getAttribute("width")), Number(svg.getAttribute("height"))];
  image.onload = () => {
    const canvas = element("canvas", { width: width * scale, height: height * scale });
    canvas.getContext("2d").drawImage(image, 0, 0, width * scale, height * scale);
    canvas.toBlob((blob) => save(blob, `${name}.png`));
  };
  image.src = URL.createObjectURL(new Blob([svg.outerHTML], { type: "image/svg+xml" }));
}
// A chart in a figure of its own, drawn again when the width or the colours change. `make(width)` gives Plot's options.
function chart(parent, name, caption, make) {
  const place = element("div");
  const figure = element("figure", { "data-chart": name }, place, element("figcaption", {}, caption, " ",
    element("button", { class: "save", type: "button", onclick: () => savePng(place, name) }, "PNG"), " ",
    element("button", { class: "save", type: "button", onclick: () => saveSvg(place, name) }, "SVG")));
  parent.append(figure);
  let drawn = 0; // the width that it was drawn for: what is added beside it can make it narrower
  const draw = () => {
    if (!figure.isConnected) return;
    const width = drawn = Math.max(280, figure.clientWidth || parent.clientWidth || 600);
    place.replaceChildren(Plot.plot({ width, ariaLabel: caption, ...make(width) }));
  };
  redraws.push(draw);
  draw();
  new ResizeObserver(() => { if (figure.clientWidth && Math.abs(figure.clientWidth - drawn) > 1 && figure.clientWidth >= 280) draw(); }).observe(figure);
  return draw;
}

// --- tables: a click on a column's name sorts by it, again the other way round
function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = element("button", { type: "button" }, ...head.childNodes);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : column > 0;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      for (const detail of table.querySelectorAll("tr.detail")) detail.remove();
      for (const row of table.querySelectorAll("tr.open")) row.classList.remove("open");
      const value = (row) => { const cell = row.cells[column], raw = cell.dataset.value ?? cell.textContent; return raw === "" || raw === "–" ? null : Number.isNaN(Number(raw)) ? raw : Number(raw); };
      const rows = [...table.tBodies[0].rows].map((row) => [value(row), row]);
      rows.sort(([a], [b]) => (a === null) - (b === null) || (down ? -1 : 1) * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true })) || 0);
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}
function saveCsv(name, head, rows) {
  const quoted = (value) => { const text = value === null || value === undefined ? "" : String(value); return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text; };
  save(new Blob([[head, ...rows].map((row) => row.map(quoted).join(",")).join("\n") + "\n"], { type: "text/csv" }), `${name}.csv`);
}
async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer());
}
