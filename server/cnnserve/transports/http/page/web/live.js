// The view "Live": what the server does, from its own measurements, once a second.

import { API, events } from "./api.js";
import { Chart } from "./chart.js";
import { bytes, empty, field, fill, h, ms, options, percent, rate, repeated } from "./dom.js";
import { modelState, onModels, state } from "./state.js";

const KEPT_S = 15 * 60;
const ALL = "";
const SPANS = [["60", "1 minute"], ["300", "5 minutes"], ["900", "15 minutes"]];
const IDLE = { images: 0, requests: 0, p50: null, p99: null, batches: {}, waiting: 0, busy: 0, errors: {} };

let root, note, tiles, charts, table, model, span, filter, body;
let samples = [];
// Whether the last sample is the present.
let flowing = false;
let stop = null;

export const live = { start, enter, leave };

function start(section) {
  root = section;
  model = h("select", { onchange: draw });
  span = h("select", { onchange: draw }, SPANS.map(([value, text]) => h("option", { value }, text)));
  filter = h("input", { type: "search", placeholder: "Name", oninput: draw });
  note = h("div", {});
  tiles = h("dl", { className: "tiles" });
  const of = (name) => (sample) => at(sample)[name];
  charts = [
    new Chart("Images per second", [{ name: "", color: "accent", of: of("images") }], rate, { area: true }),
    new Chart("Latency", [{ name: "p50", color: "accent", of: of("p50") }, { name: "p99", color: "warm", of: of("p99") }], ms),
    new Chart("Mean batch size", [{ name: "", color: "accent", of: (sample) => meanBatch(at(sample)) }], (value) => (value === null ? "–" : value.toFixed(1))),
    new Chart("Queue and instances", [{ name: "waiting", color: "warm", of: of("waiting") }, { name: "busy", color: "accent", of: of("busy") }], (value) => (value === null ? "–" : value.toFixed(value < 10 && value % 1 ? 2 : 0))),
  ];
  body = h("tbody", {});
  table = h("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Models now" }, h("table", { className: "live" },
    h("thead", {}, h("tr", {}, ["Model", "Images/s", "Requests/s", "p50", "p99", "Batch", "Waiting", "Busy", "Errors/s", "Last minute"].map((name) => h("th", { scope: "col" }, name)))), body));
  fill(root, h("h1", { className: "heard" }, "Live"),
    h("div", { className: "controls" }, field("Show", model), field("Over", span)),
    note, tiles, h("div", { className: "charts" }, charts.map((chart) => chart.element)),
    h("section", { className: "card" }, h("div", { className: "row spread" }, h("h2", {}, "Models now"), field("Filter", filter)), table));
  onModels(() => {
    options(model, [[ALL, "All models"], ...names().map((name) => [name, name])], model.value);
    draw();
  });
  addEventListener("cnnserve-theme", draw);
}

function enter() {
  leave();
  stop = new AbortController();
  watch(stop.signal);
}

function leave() {
  stop?.abort();
  stop = null;
}

async function watch(signal) {
  while (!signal.aborted) {
    try {
      await events(`${API}/live`, signal, (found) => {
        // A stream begins with what the server remembers; a server that was started again remembers nothing.
        samples = [...samples.filter(({ t }) => t < found[0].t), ...found];
        samples = samples.filter(({ t }) => t >= samples.at(-1).t - KEPT_S);
        flowing = true;
        fill(note);
        if (!document.hidden) draw();
      });
      if (!signal.aborted) repeated(note, new Error("The server ended the measurements. It may be stopping; this page tries again."));
    } catch (error) {
      if (signal.aborted) return;
      repeated(note, error);
      if (error.status === 401 || error.status === 403) return;
    } finally {
      flowing = false;
      draw();
    }
    await new Promise((resume) => setTimeout(resume, 2000));
  }
}

const names = () => (state.models || []).flatMap((one) => one.versions.map((version) => `${one.name}/${version.version}`));

// One version's numbers in a sample, or those of all together.
function at(sample) {
  if (!sample) return IDLE;
  if (model.value !== ALL) return sample.models[model.value] || IDLE;
  sample.all ||= together(Object.values(sample.models));
  return sample.all;
}

function together(all) {
  if (!all.length) return IDLE;
  const sum = (name) => all.reduce((value, one) => value + one[name], 0);
  const requests = sum("requests");
  // Quantiles of several models cannot be added: this is the mean of them, by requests.
  const mean = (name) => (requests ? all.reduce((value, one) => value + (one[name] ?? 0) * one.requests, 0) / requests : null);
  const merged = (name) => added(all.map((one) => one[name]));
  return { images: sum("images"), requests, p50: mean("p50"), p99: mean("p99"), waiting: sum("waiting"), busy: sum("busy"), instances: sum("instances"), batches: merged("batches"), errors: merged("errors") };
}

function added(counts) {
  const sums = {};
  for (const some of counts) for (const [key, count] of Object.entries(some)) sums[key] = (sums[key] || 0) + count;
  return sums;
}

function meanBatch({ batches }) {
  const runs = Object.values(batches).reduce((sum, count) => sum + count, 0);
  return runs ? Object.entries(batches).reduce((sum, [size, count]) => sum + size * count, 0) / runs : null;
}

const failed = ({ errors }) => Object.values(errors).reduce((sum, count) => sum + count, 0);

function draw() {
  if (!root || root.hidden) return;
  const last = flowing && state.error?.status !== 0 ? samples.at(-1) : null;
  const now = at(last);
  const recent = samples.filter(({ t }) => t > samples.at(-1).t - 60);
  const errors = added(recent.map((sample) => at(sample).errors));
  const refused = added(recent.map((sample) => sample.refused));
  const batches = added(recent.map((sample) => at(sample).batches));
  fill(tiles,
    tile("Images/s", rate(now.images)), tile("Requests/s", rate(now.requests)), tile("p50", ms(now.p50)), tile("p99", ms(now.p99)),
    tile("Waiting", String(now.waiting)), tile("Busy", now.instances ? `${now.busy.toFixed(2)} of ${now.instances}` : "0"),
    tile("Batch sizes in 1 min", sizes(batches)), tile("Failed in 1 min", reasons(errors)), model.value === ALL && tile("Refused in 1 min", reasons(refused)),
    model.value === ALL && tile("Memory held", last ? `${bytes(last.held)} of ${bytes(last.limit)}` : "–"));
  for (const chart of charts) chart.show(samples, Number(span.value));
  drawTable(last, recent);
}

const reasons = (counts) => Object.entries(counts).map(([reason, count]) => `${count} ${reason}`).join(", ") || "none";

// The three sizes with most runs, and their share of all runs.
function sizes(batches) {
  const runs = Object.values(batches).reduce((sum, count) => sum + count, 0);
  const most = Object.entries(batches).sort(([, a], [, b]) => b - a);
  return most.slice(0, 3).map(([size, count]) => `${size}: ${percent(count / runs)}`).join(", ") + (most.length > 3 ? ", …" : "") || "none";
}

const tile = (name, value) => h("div", {}, h("dt", {}, name), h("dd", { className: value.length > 12 ? "long" : null }, value));

function drawTable(last, recent) {
  const word = filter.value.toLowerCase();
  const states = new Map((state.models || []).map((one) => [one.name, modelState(one)]));
  const rows = names().filter((name) => name.toLowerCase().includes(word))
    .map((name) => [name, last?.models[name] || IDLE, recent.map((sample) => sample.models[name]?.images ?? 0)])
    // By the whole minute, so that the rows do not change places every second.
    .sort(([, , a], [, , b]) => total(b) - total(a));
  if (!rows.length) {
    fill(body, h("tr", {}, h("td", { colSpan: 10 }, empty(state.models?.length ? "No model matches" : "No models"))));
    return;
  }
  fill(body, rows.map(([name, now, minute]) => h("tr", { className: now === IDLE ? "idle" : null },
    h("th", { scope: "row" }, name, states.get(name.split("/")[0]) !== "READY" && h("small", {}, ` ${states.get(name.split("/")[0])}`)),
    [rate(now.images), rate(now.requests), ms(now.p50), ms(now.p99), meanBatch(now)?.toFixed(1) ?? "–", String(now.waiting), now.busy.toFixed(2), String(failed(now))].map((text) => h("td", {}, text)),
    h("td", {}, spark(minute)))));
}

const total = (values) => values.reduce((sum, value) => sum + value, 0);

function spark(values) {
  const most = Math.max(...values);
  if (!(most > 0)) return "";
  const canvas = h("canvas", { className: "spark", width: 160, height: 36, "aria-hidden": "true" });
  const pen = canvas.getContext("2d");
  pen.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
  pen.lineWidth = 2.5;
  pen.beginPath();
  values.forEach((value, index) => pen.lineTo(160 - (values.length - 1 - index) * (158 / 59), 33 - (value / most) * 30));
  pen.stroke();
  return canvas;
}
