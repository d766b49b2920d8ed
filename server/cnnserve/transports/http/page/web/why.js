// The view "Why": which parts of the picture the probability of a class depends on.

import { blob, classifyPath, json, post, versionPath } from "./api.js";
import { apart, empty, field, fill, h, options, percent, trouble } from "./dom.js";
import { chooser, intake } from "./intake.js";
import { onModels, state } from "./state.js";

const TOP = 10;
const GRIDS = [["5", "Coarse"], ["8", "Normal"], ["12", "Fine"], ["16", "Finest"]];

let root, choice, label, grid, strength, stage, told, button;
let file = null;
let wanted = null;
let map = null;
let round = 0;
let stop = null;
let stale = false;

export const why = { start, enter, leave: () => stop?.abort() };

// Called by "Try it": explains this image.
export function explain(image, chosen) {
  wanted = { image, chosen };
  location.hash = "#why";
}

function enter() {
  if (wanted) useWanted();
  else if (stale) prepare();
}

function start(section) {
  root = section;
  choice = chooser(prepare);
  label = h("select", {});
  grid = h("select", {}, GRIDS.map(([value, text]) => h("option", { value }, `${text} (${value} × ${value})`)));
  grid.value = "8";
  strength = h("input", { type: "range", min: 0, max: 100, value: 65, oninput: draw });
  button = h("button", { type: "button", className: "primary", disabled: true, onclick: run }, "Explain");
  stage = h("div", { className: "stage" });
  told = h("p", { className: "told", role: "status" });
  fill(root, h("h1", { className: "heard" }, "Why"),
    h("div", { className: "controls" }, field("Model", choice.model), field("Version", choice.version), field("Class", label), field("Grid", grid), h("div", { className: "field" }, button)),
    h("div", { className: "split even" },
      h("div", {}, intake(root, ([first]) => use(first), { many: false }),
        h("p", { className: "sub" }, "One part of the picture after the other is hidden, and the network looks again. Where the probability of the class falls, the network needs that part. The runs wait behind all other requests.")),
      h("div", { className: "card" }, stage, told, h("div", { className: "legend" }, h("span", {}, "against the class"), h("span", { className: "scale", "aria-hidden": "true" }), h("span", {}, "for the class")), field("Strength of the colours", strength))));
  fill(stage, empty("No picture yet", "Choose one, or click a sample."));
  addEventListener("cnnserve-theme", draw);
  onModels(() => choice.draw());
}

function useWanted() {
  const { image, chosen } = wanted;
  wanted = null;
  if (chosen) choice.choose(chosen.model, chosen.version);
  use(image, true);
}

async function use(image, now = true) {
  file = image;
  await prepare();
  if (now && map?.picture) run();
}

// Shows what the network sees, and offers the classes that it thinks of.
async function prepare() {
  const mine = ++round;
  stop?.abort();
  const chosen = choice.chosen();
  map = null;
  stage.classList.remove("busy");
  // As in "Try it": nothing runs while people look at another view.
  stale = root.hidden;
  if (stale) return;
  button.disabled = true;
  fill(told);
  if (!chosen) {
    fill(stage, empty("No model to ask", state.models ? "No version that takes images is ready." : "The models are not known yet."));
    return;
  }
  if (!file) return;
  fill(stage, empty("Reading the picture…"));
  try {
    const [seen, found] = await Promise.all([
      blob(`${versionPath(chosen.model, chosen.version)}/input`, await post(file)),
      json(classifyPath(chosen.model, chosen.version, TOP), await post(file))]);
    const picture = await createImageBitmap(seen);
    if (mine !== round) return;
    options(label, found.results[0].classes.map(({ index, label: text, probability }) => [String(index), `${apart(text || `Class ${index}`)} · ${percent(probability)}`]));
    map = { picture, chosen };
    button.disabled = false;
    draw();
  } catch (error) {
    if (mine === round) fill(stage, trouble(error));
  }
}

async function run() {
  const mine = ++round;
  stop?.abort();
  stop = new AbortController();
  const { chosen } = map;
  button.disabled = true;
  stage.classList.add("busy");
  fill(told, `Hiding ${grid.value} × ${grid.value} parts, one after the other…`);
  try {
    const path = `${versionPath(chosen.model, chosen.version)}/occlusion?class=${label.value}&cells=${grid.value}`;
    const found = await json(path, await post(file, stop.signal));
    if (mine !== round) return;
    map.found = found;
    draw();
    tell(found);
  } catch (error) {
    if (mine === round) fill(told, error.name !== "AbortError" && trouble(error));
  } finally {
    if (mine === round) stage.classList.remove("busy");
    button.disabled = !map;
  }
}

function tell({ label: text, index, probability, drops, runs }) {
  const most = Math.max(...drops.flat());
  const row = drops.findIndex((values) => values.includes(most));
  const place = `row ${row + 1} of ${drops.length}, column ${drops[row].indexOf(most) + 1} of ${drops[row].length}`;
  fill(told, h("strong", {}, h("bdi", {}, text || `Class ${index}`)), ` has a probability of ${percent(probability)}. `,
    most > 0.005 ? `Hiding the most important part (${place}) lowers it to ${percent(Math.max(0, probability - most))}.` : "No single part matters: it stays when any of them is hidden.",
    h("small", {}, `${runs} runs`));
}

// Red: hiding it lowers the probability. Blue: hiding it raises it.
function draw() {
  if (!map) return;
  const { picture, found } = map;
  const canvas = h("canvas", { role: "img", width: picture.width, height: picture.height, className: "picture",
    "aria-label": found ? "The picture as the network sees it, with the parts that matter in colour" : "The picture as the network sees it" });
  const pen = canvas.getContext("2d");
  const size = Math.max(480, picture.width);
  const scale = size / picture.width;
  canvas.width = size;
  canvas.height = Math.round(picture.height * scale);
  pen.imageSmoothingEnabled = picture.width > 64;
  // The colours of the map must not mix with those of the picture.
  if (found) pen.filter = `grayscale(${Math.min(100, 2 * strength.value)}%)`;
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  pen.filter = "none";
  if (found) paint(pen, canvas, found.drops);
  fill(stage, canvas);
}

function paint(pen, canvas, drops) {
  const rows = drops.length;
  const columns = drops[0].length;
  const most = Math.max(...drops.flat().map(Math.abs), 1e-6);
  const small = new OffscreenCanvas(columns, rows);
  const pixels = new ImageData(columns, rows);
  drops.flat().forEach((drop, index) => {
    const share = drop / most;
    pixels.data.set(share > 0 ? [232, 62, 40, 255 * share] : [38, 108, 235, -255 * share], index * 4);
  });
  small.getContext("2d").putImageData(pixels, 0, 0);
  pen.imageSmoothingEnabled = true;
  pen.imageSmoothingQuality = "high";
  pen.globalAlpha = strength.value / 100;
  pen.drawImage(small, 0, 0, canvas.width, canvas.height);
  pen.globalAlpha = 1;
}
