// The view "Try it": images in, classes out, for one version or for two side by side.

import { blob, classifyPath, json, post, token, versionPath } from "./api.js";
import { bytes, duration, empty, field, fill, h, percent, trouble } from "./dom.js";
import { chooser, intake } from "./intake.js";
import { onModels, state } from "./state.js";
import { explain } from "./why.js";

const AT_ONCE = 4;
const MOST = 1000;
const STEPS = ["queue", "preprocess", "compute", "other"];

let results, topK, first, second, secondVersion, command;
const cards = [];
const waiting = [];
let running = 0;
let round = 0;
let root = null;
let stale = false;

export const tryIt = { start, enter };

function start(section) {
  root = section;
  first = chooser(again);
  second = chooser(again, { optional: true });
  topK = h("input", { type: "number", min: 1, max: MOST, value: 5, onchange: chooseTop });
  secondVersion = field("Version to compare", second.version);
  results = h("div", { className: "results" });
  command = h("div", {});
  const clear = h("button", { type: "button", className: "quiet", onclick: removeAll }, "Remove all");
  fill(section, h("h1", { className: "heard" }, "Try it"),
    h("div", { className: "controls" }, field("Model", first.model), field("Version", first.version),
      field("Compare with", second.model), secondVersion, field("Top", topK)),
    intake(section, take),
    h("div", { className: "row spread" }, h("h2", { className: "plain" }, "Results"), clear),
    results,
    h("details", { className: "card" }, h("summary", {}, "The same from a terminal or from Python"), command));
  onModels(() => {
    first.draw();
    second.draw();
    drawEmpty();
    drawCommand();
  });
  drawEmpty();
}

function drawEmpty() {
  secondVersion.hidden = !second.chosen();
  if (cards.length) return;
  const chosen = first.chosen();
  if (state.error && !state.models) fill(results, empty("The models are not known", state.error.message));
  else if (state.models && !chosen) fill(results, empty("No model to try", "No version that takes images is ready. The view Models says why."));
  else fill(results, empty("Nothing tried yet", "Drop an image, or click one of the samples."));
}

function take(files) {
  if (!cards.length) fill(results);
  for (const file of files) {
    const card = makeCard(file);
    cards.unshift(card);
    results.prepend(card.element);
    plan(card);
  }
  drawCommand();
}

function removeAll() {
  for (const card of cards.splice(0)) URL.revokeObjectURL(card.url);
  waiting.length = 0;
  drawEmpty();
  drawCommand();
}

function enter() {
  if (stale) again();
}

const top = () => Math.min(MOST, Math.max(1, Math.round(Number(topK.value)) || 5));

function chooseTop() {
  topK.value = top();
  again();
}

function again() {
  // A version may come or go while people look at another view: nothing runs before they come back.
  stale = root.hidden;
  if (stale) return;
  secondVersion.hidden = !second.chosen();
  round += 1;
  waiting.length = 0;
  cards.forEach(plan);
  drawCommand();
}

function makeCard(file) {
  const url = URL.createObjectURL(file);
  const image = h("img", { src: url, alt: `Image ${file.name || "pasted"}` });
  image.addEventListener("error", () => image.classList.add("broken"));
  const answers = h("div", { className: "answers" });
  const problem = h("div", {});
  const seen = h("button", { type: "button", "aria-pressed": "false", onclick: () => toggle(card) }, "Network’s view");
  const ask = h("button", { type: "button", onclick: () => explain(file, first.chosen()) }, "Why?");
  const remove = h("button", { type: "button", className: "quiet", "aria-label": `Remove ${file.name || "the image"}`, onclick: () => drop(card) }, "Remove");
  const element = h("article", { className: "result" },
    h("div", { className: "shot" }, h("div", { className: "frame" }, image), h("div", { className: "row" }, seen, ask), problem),
    h("div", { className: "said" }, h("div", { className: "row spread" },
      h("p", { className: "file" }, h("bdi", {}, file.name || "pasted image"), h("small", {}, bytes(file.size))), remove), answers));
  const card = { file, url, image, answers, problem, seen, element, view: 0 };
  return card;
}

function drop(card) {
  cards.splice(cards.indexOf(card), 1);
  card.element.remove();
  URL.revokeObjectURL(card.url);
  drawEmpty();
  drawCommand();
}

async function toggle(card) {
  const on = card.seen.getAttribute("aria-pressed") !== "true";
  const mine = ++card.view;
  card.seen.setAttribute("aria-pressed", String(on));
  card.image.classList.remove("broken");
  fill(card.problem);
  if (!on) {
    card.image.src = card.url;
    card.image.classList.remove("pixels");
    return;
  }
  const chosen = first.chosen();
  if (!chosen) return;
  try {
    const seen = await blob(`${versionPath(chosen.model, chosen.version)}/input`, await post(card.file));
    if (mine !== card.view) return;
    const url = URL.createObjectURL(seen);
    card.image.onload = () => {
      URL.revokeObjectURL(url);
      card.image.onload = null;
    };
    card.image.src = url;
    card.image.classList.add("pixels");
  } catch (error) {
    if (mine !== card.view) return;
    card.seen.setAttribute("aria-pressed", "false");
    fill(card.problem, trouble(error));
  }
}

// Runs

function plan(card) {
  if (card.seen.getAttribute("aria-pressed") === "true") {
    card.seen.setAttribute("aria-pressed", "false");
    toggle(card);
  }
  const chosen = [first.chosen(), second.chosen()].filter(Boolean);
  fill(card.answers, chosen.map((one) => h("div", { className: "answer" }, h("p", { className: "sub" }, `${one.model} / ${one.version}`), h("p", { className: "sub wait" }, "Waiting…"))));
  [...card.answers.children].forEach((place, index) => waiting.push({ card, place, chosen: chosen[index], round }));
  pump();
}

function pump() {
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    run(waiting.shift()).finally(() => {
      running -= 1;
      pump();
    });
  }
}

async function run({ card, place, chosen, round: mine }) {
  const head = h("p", { className: "sub" }, `${chosen.model} / ${chosen.version}`);
  const started = performance.now();
  try {
    const found = await json(classifyPath(chosen.model, chosen.version, top()), await post(card.file));
    if (mine === round) fill(place, head, bars(found.results[0].classes), timings(found.timings, performance.now() - started));
  } catch (error) {
    if (mine === round) fill(place, head, trouble(error));
  }
}

export function bars(classes) {
  return h("ol", { className: "bars" }, classes.map(({ index, label, probability }) => h("li", {},
    h("bdi", { className: "label", title: `Class ${index}` }, label || `Class ${index}`),
    h("span", { className: "value" }, percent(probability)),
    h("span", { className: "track", "aria-hidden": "true" }, h("span", { style: { width: `${probability * 100}%` } })))));
}

function timings(times, roundTripMs) {
  const parts = { queue: times.queue_us, preprocess: times.preprocess_us, compute: times.compute_us };
  parts.other = Math.max(0, times.total_us - parts.queue - parts.preprocess - parts.compute);
  const sum = STEPS.reduce((all, step) => all + parts[step], 0) || 1;
  return h("div", { className: "timings" },
    h("div", { className: "stack", "aria-hidden": "true" }, STEPS.map((step) => h("span", { className: step, style: { flexGrow: String(parts[step] / sum) } }))),
    h("dl", {}, [...STEPS.slice(0, 3), "total"].map((step) => h("div", { className: step }, h("dt", {}, step), h("dd", {}, duration(step === "total" ? times.total_us : parts[step])))),
      h("div", { className: "trip" }, h("dt", {}, "round trip"), h("dd", {}, duration(roundTripMs * 1000)))));
}

// Commands

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function drawCommand() {
  const chosen = first.chosen();
  if (!chosen) {
    fill(command, h("p", { className: "sub" }, "Choose a model first."));
    return;
  }
  const url = location.origin + classifyPath(chosen.model, chosen.version, top());
  const name = cards[0]?.file.name || "image.jpg";
  const secret = token() ? " -H \"Authorization: Bearer $TOKEN\"" : "";
  const headers = token() ? ", {\"Authorization\": \"Bearer \" + os.environ[\"TOKEN\"]}" : "";
  const python = `import ${token() ? "os, " : ""}urllib.request as u; print(u.urlopen(u.Request(${JSON.stringify(url)}, open(${JSON.stringify(name)}, "rb").read()${headers})).read().decode())`;
  fill(command, code("curl", `curl -s${secret} --data-binary ${shell(`@${name}`)} ${shell(url)}`), code("Python", python));
}

function code(name, text) {
  const copy = h("button", { type: "button", className: "quiet", onclick: async () => {
    try {
      await navigator.clipboard.writeText(text);
      fill(copy, "Copied");
    } catch {
      fill(copy, "Select and copy it");
    }
    setTimeout(() => fill(copy, "Copy"), 2000);
  } }, "Copy");
  return h("div", { className: "command" }, h("div", { className: "row spread" }, h("h3", {}, name), copy), h("pre", { className: "code", tabIndex: 0 }, text));
}
