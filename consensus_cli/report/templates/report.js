const byId = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const payload = JSON.parse(byId("payload").textContent);
const views = new Map();
const isolated = new Map();

function make(name, className, text) {
  const element = document.createElement(name);
  element.className = className;
  element.textContent = text;
  return element;
}

function setUpTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  byId("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
}

/* Charts. Their colours of text and lines come from the style sheet, so that theme and print need no drawing. */

function runText(index) {
  const row = byId(`run-${index}`);
  const lines = all("#table thead th").flatMap((heading, i) =>
    "hover" in heading.dataset ? [`${heading.textContent}: ${row.cells[i].textContent}`] : []);
  return [...lines, row.querySelector("td.command code").textContent].join("\n");
}

function showTip(_, event, item, value) {
  const tip = byId("tip");
  tip.hidden = !value;
  if (!value) return;
  const { t, r } = item.datum;
  tip.textContent = t ?? runText(r);
  const { clientX, clientY } = event.changedTouches?.[0] ?? event;
  const left = Math.min(clientX + 14, innerWidth - tip.offsetWidth - 8);
  const below = clientY + 18 + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${below ? clientY + 18 : Math.max(8, clientY - tip.offsetHeight - 12)}px`;
}

async function draw(plot, spec) {
  const options = {
    mode: "vega-lite", renderer: "svg", tooltip: showTip,
    actions: { export: true, source: false, compiled: false, editor: false },
    config: { background: "transparent", font: "system-ui, sans-serif", axis: { labelFontSize: 12, titleFontSize: 12 }, view: { stroke: "#8C8C8C" } },
  };
  const { view } = await vegaEmbed(plot, spec, options);
  views.set(plot.id, view);
  return view;
}

async function drawChart(plot) {
  if (views.has(plot.id)) return;
  views.set(plot.id, null);
  const { task } = plot.closest("[data-task]").dataset;
  isolate(await draw(plot, { ...payload.charts[plot.id], datasets: payload.data[task] }), task);
}

function isolate(view, task) {
  // Bars and heat maps have no series to isolate.
  if ("isolated" in view.getState().signals) view.signal("isolated", isolated.get(task) ?? null).runAsync();
}

function setUpCharts() {
  const plots = all(".plot").filter((plot) => plot.id in payload.charts);
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { observer.unobserve(entry.target); drawChart(entry.target); }
  }, { rootMargin: "200px" });
  plots.forEach((plot) => observer.observe(plot));
  return plots;
}

/* Paper cannot scroll: what is out of sight is drawn when the page has nothing else to do. */
async function drawTheRest(plots, showNetworks) {
  for (const plot of plots) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    if (!plot.closest("[hidden]")) await drawChart(plot);
  }
  showNetworks();
}

function setUpLegend() {
  for (const button of all(".legend button")) {
    button.addEventListener("click", () => {
      const { task } = button.closest(".legend").dataset;
      const series = isolated.get(task) === button.dataset.series ? undefined : button.dataset.series;
      isolated.set(task, series);
      for (const other of all("button", button.closest(".legend"))) {
        other.setAttribute("aria-pressed", String(other.dataset.series === series));
      }
      for (const [id, view] of views) {
        if (view && byId(id).closest(".chart").dataset.task === task) isolate(view, task);
      }
    });
  }
}

function setUpTasks() {
  const select = byId("task");
  if (!select) return;
  const show = () => {
    for (const element of all(".legend, figure[data-task]")) element.hidden = element.dataset.task !== select.value;
  };
  select.addEventListener("change", show);
  show();
}

/* Networks, block by block */

function shade(share) {
  const index = Math.round(share * (payload.scale.length - 1));
  return { background: payload.scale[index], ink: index < payload.scale.length / 2 ? "#ffffff" : "#000000" };
}

function shares(values) {
  const low = Math.min(...values), high = Math.max(...values);
  return values.map((value) => (high > low ? (value - low) / (high - low) : 1));
}

function strip(title, network, step, gone) {
  const row = make("div", "row", "");
  row.append(make("h3", "", title), make("div", "strip", ""));
  const share = new Map(step ? step.blocks.map((name, i) => [name, shares(step.importance)[i]]) : []);
  for (const name of network.blocks) {
    const order = network.removed.indexOf(name);
    const block = make("span", gone && order >= 0 ? "block gone" : "block", "");
    block.append(make("b", "", gone && order >= 0 ? `${order + 1}.` : ""), name);
    if (share.has(name) && !block.classList.contains("gone")) {
      const { background, ink } = shade(share.get(name));
      Object.assign(block.style, { background, color: ink });
      block.title = `importance ${step.importance[step.blocks.indexOf(name)]}`;
    }
    row.lastChild.append(block);
  }
  return row;
}

function heatSpec(values, { x, y, title, domain, written }) {
  const axis = { type: "nominal", title: null, sort: null };
  const colour = { field: "z", type: "quantitative", scale: { scheme: "cividis", domain }, legend: { title, gradientLength: 120 } };
  const middle = (domain[0] + domain[1]) / 2;
  const ink = { condition: { test: `datum.z < ${middle}`, value: "#ffffff" }, value: "#000000" };
  return {
    width: "container", height: 24 * y.length, data: { values },
    encoding: { x: { field: "x", ...axis, scale: { domain: x } }, y: { field: "y", ...axis, scale: { domain: y } } },
    layer: [
      { mark: { type: "rect", tooltip: true }, encoding: { color: colour } },
      ...(written ? [{ mark: { type: "text", fontSize: 11, tooltip: true }, encoding: { text: { field: "v" }, color: ink } }] : []),
    ],
  };
}

function orderSpec(network) {
  const y = network.steps.map((_, i) => `step ${i + 1}`);
  const values = network.steps.flatMap((step, i) => {
    const share = shares(step.importance);
    return step.blocks.map((name, k) => ({
      x: name, y: y[i], z: share[k], v: step.removed.includes(name) ? "✕" : "",
      t: `${y[i]}, ${name}\nimportance ${step.importance[k]}${step.removed.includes(name) ? "\ngoes" : ""}`,
    }));
  });
  return heatSpec(values, { x: network.blocks, y, title: "importance", domain: [0, 1], written: true });
}

function rankSpec(step) {
  const values = step.metrics.flatMap((metric, i) => step.blocks.map((name, k) => ({
    x: name, y: metric, z: step.ranks[i][k], v: String(step.ranks[i][k]), t: `${name}, ${metric}\nrank ${step.ranks[i][k]}`,
  })));
  const written = step.blocks.length <= 16;
  return heatSpec(values, { x: step.blocks, y: step.metrics, title: "rank", domain: [1, Math.max(2, step.blocks.length)], written });
}

function tauSpec(step) {
  const values = step.metrics.flatMap((a, i) => step.metrics.map((b, k) => {
    const tau = step.tau[i][k];
    const v = tau === null ? "–" : tau.toFixed(2).replace("-", "−");
    return { x: b, y: a, z: tau, v, t: `${a}, ${b}\nτ ${v}` };
  }));
  return heatSpec(values, { x: step.metrics, y: step.metrics, title: "τ", domain: [-1, 1], written: innerWidth >= 600 || step.metrics.length <= 4 });
}

function showStep(network) {
  const number = Number(byId("step").value);
  const step = network.steps[number - 1];
  byId("step-text").textContent = `${number} of ${network.steps.length}: ${step.removed.join(", ") || "nothing"} goes`;
  draw(byId("ranks"), rankSpec(step));
  const many = step.metrics.length > 1;
  byId("tau").closest("figure").hidden = !many;
  if (many) draw(byId("tau"), tauSpec(step));
}

function showNetwork(network) {
  const known = network.steps.length > 0;
  byId("steps").hidden = !known;
  byId("no-steps").hidden = known;
  byId("blocks").replaceChildren(
    strip(known ? "before" : "removed, in order", network, network.steps[0], !known),
    ...(known ? [strip("after", network, network.steps.at(-1), true)] : []));
  if (!known) return;
  Object.assign(byId("step"), { max: network.steps.length, value: 1 });
  draw(byId("order"), orderSpec(network));
  showStep(network);
}

function setUpNetworks() {
  const select = byId("network");
  if (!select) return () => {};
  const chosen = () => payload.networks[Number(select.value)];
  select.addEventListener("change", () => showNetwork(chosen()));
  byId("step").addEventListener("input", () => showStep(chosen()));
  let shown = false;
  const showOnce = () => {
    if (!shown) showNetwork(chosen());
    shown = true;
  };
  // The block charts wait until they are near, as all others do.
  const observer = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) { observer.disconnect(); showOnce(); }
  }, { rootMargin: "200px" });
  observer.observe(byId("networks"));
  return showOnce;
}

/* Table of runs */

function sortKey(cell, numeric) {
  if (!numeric) return cell.textContent;
  const text = cell.dataset.sort ?? cell.textContent;
  return text === "" ? NaN : Number(text.replace("−", "-"));
}

function sortBy(heading) {
  const column = heading.cellIndex;
  const body = byId("table").tBodies[0];
  const rows = [...body.rows];
  const numeric = rows.some((row) => row.cells[column].classList.contains("n"));
  const up = heading.getAttribute("aria-sort") !== "ascending";
  const keys = new Map(rows.map((row) => [row, sortKey(row.cells[column], numeric)]));
  const direction = up ? 1 : -1;
  rows.sort((a, b) => {
    const x = keys.get(a), y = keys.get(b);
    if (!numeric) return direction * x.localeCompare(y, "en", { numeric: true });
    // Missing numbers stay at the end in both directions.
    return Number.isNaN(x) || Number.isNaN(y) ? Number.isNaN(x) - Number.isNaN(y) : direction * (x - y);
  });
  body.append(...rows);
  for (const other of all("th", heading.parentElement)) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
}

function showRows() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const status = byId("status").value;
  const more = byId("more");
  const most = more.dataset.most ? Number(more.dataset.most) : Infinity;
  const rows = [...byId("table").tBodies[0].rows];
  let count = 0;
  for (const row of rows) {
    const text = words.length ? row.textContent.toLowerCase() : "";
    const matches = (status === "" || row.dataset.status === status) && words.every((word) => text.includes(word));
    count += matches;
    row.hidden = !matches || count > most;
  }
  more.hidden = count <= most;
  const shown = Math.min(count, most);
  byId("shown").textContent = `${count} of ${rows.length} runs` + (shown < count ? `, the first ${shown} shown` : "");
}

async function copyCommand(button) {
  const code = button.parentElement.querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "copied";
  } catch {
    // Without leave to write the clipboard, the command is selected for the user to copy.
    getSelection().selectAllChildren(code);
    button.textContent = "selected";
  }
  setTimeout(() => { button.textContent = "copy"; }, 1500);
}

function setUpTable() {
  const table = byId("table");
  if (!table) return;
  table.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.closest("th")) { sortBy(button.closest("th")); showRows(); }
    else if (button) copyCommand(button);
  });
  byId("filter").addEventListener("input", showRows);
  byId("status").addEventListener("change", showRows);
  byId("more").addEventListener("click", () => { byId("more").dataset.most = ""; showRows(); });
  showRows();
}

setUpTheme();
setUpTable();
setUpTasks();
setUpLegend();
const showNetworks = setUpNetworks();
const plots = setUpCharts();
Promise.all(plots.slice(0, 1).map(drawChart)).then(() => {
  performance.mark("report-ready");
  return drawTheRest(plots, showNetworks);
});
