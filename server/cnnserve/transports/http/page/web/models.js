// The view "Models": all models, and everything about one version.

import { blob, json, versionPath } from "./api.js";
import { bytes, count, empty, field, fill, h, percent, refill, tiny, trouble } from "./dom.js";
import { isReady, modelState, newestReady, onModels, state, stateOf } from "./state.js";

let root, list, detail, filter, spoken;
let chosen = { model: "", version: "" };
let drawn = "";
let urls = [];

export const models = { start, enter };

function start(section) {
  root = section;
  filter = h("input", { type: "search", placeholder: "Name, state or architecture", oninput: drawList });
  list = h("ul", { className: "model-list" });
  detail = h("article", { className: "detail" });
  // Only this is read aloud if something else is shown, not all of it.
  spoken = h("p", { className: "heard", role: "status" });
  fill(root, h("div", { className: "split" },
    h("aside", { className: "side", "aria-label": "All models" }, h("h1", { className: "heard" }, "Models"), field("Filter models", filter), list), detail), spoken);
  onModels(draw);
}

function enter([model = "", version = ""]) {
  chosen = { model, version };
  drawn = "";
  if (state.models || state.error) draw();
  // On a phone, the link that was followed is no longer shown.
  if (model && !list.checkVisibility()) detail.querySelector("h1")?.focus();
}

function draw() {
  if (state.error && !state.models) {
    root.classList.remove("opened");
    fill(list);
    fill(detail, trouble(state.error));
    return;
  }
  drawList();
  const model = state.models.find(({ name }) => name === chosen.model) || (chosen.model ? null : state.models[0]);
  root.classList.toggle("opened", Boolean(chosen.model));
  if (!model) {
    fill(detail, chosen.model
      ? empty("This model does not exist", `The server knows no model ${chosen.model}.`)
      : empty("No models yet", "The model repository is empty. Publish a model with cnnserve export, and it appears here."));
    return;
  }
  const version = model.versions.find((one) => one.version === chosen.version) || newestReady(model) || model.versions.at(-1);
  const what = JSON.stringify([model, version && version.version]);
  if (what === drawn) return;
  drawn = what;
  fill(spoken, `${model.name}${version ? ` version ${version.version}, ${stateOf(version)}` : ""}`);
  drawModel(model, version);
}

function drawList() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = (state.models || []).filter((model) => {
    const architectures = model.versions.map((version) => version.architecture).join(" ");
    const text = `${model.name} ${modelState(model)} ${architectures}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  const current = chosen.model || state.models?.[0]?.name;
  refill(list, matches.map((model) => h("li", {},
    h("a", { href: `#models/${encodeURIComponent(model.name)}`, "aria-current": model.name === current ? "true" : null },
      h("span", { className: "name" }, model.name), badge(modelState(model)),
      h("span", { className: "sub" }, summary(model))))),
  !matches.length && h("li", { className: "none" }, "No model matches."));
}

function summary(model) {
  const version = newestReady(model) || model.versions.at(-1);
  if (!version) return "no version";
  const numbers = model.versions.length === 1 ? `version ${version.version}` : `${model.versions.length} versions`;
  return [version.architecture.split(":").at(-1) || "no manifest", version.precision, numbers].filter(Boolean).join(" · ");
}

const badge = (word) => h("span", { className: `badge ${word.toLowerCase()}` }, word);

function drawModel(model, version) {
  for (const url of urls.splice(0)) URL.revokeObjectURL(url);
  const chips = model.versions.map((one) => h("a", {
    className: "chip", href: `#models/${encodeURIComponent(model.name)}/${encodeURIComponent(one.version)}`,
    "aria-current": one === version ? "true" : null,
  }, one.version, one.version_labels.map((label) => h("small", {}, label)), !isReady(one) && h("small", {}, stateOf(one).toLowerCase())));
  const head = h("header", {},
    h("a", { className: "back", href: "#models" }, "← All models"),
    h("div", { className: "title" }, h("h1", { tabIndex: -1 }, model.name), badge(version ? stateOf(version) : "UNAVAILABLE")),
    chips.length > 0 && h("div", { className: "chips" }, h("span", { className: "sub" }, "Version"), chips),
    (version?.reason || model.reason) && h("p", { className: version && isReady(version) ? "note" : "trouble" }, version?.reason || model.reason));
  const body = h("div", { className: "body" });
  const known = version && isReady(version) && facts(version);
  refill(detail, head, known, body);
  if (known) drawDetails(body, known, model, version);
}

const fact = (name, value, note) => h("div", {}, h("dt", {}, name), h("dd", {}, value, note && h("small", {}, note)));

function facts(version) {
  const nodes = Object.entries(version.placement);
  return h("dl", { className: "facts" },
    fact("Architecture", version.architecture || "unknown"),
    fact("Precision", version.precision || "unknown"),
    fact("Classes", count(version.class_count)),
    fact("Input", version.input.shape.map((size) => (size < 0 ? "N" : size)).join("×"), version.input.datatype),
    fact("Largest batch", count(version.max_batch_size)),
    nodes.map(([provider, number]) => fact("Runs on", provider.replace("ExecutionProvider", ""), `${count(number)} nodes`)));
}

async function drawDetails(body, known, model, version) {
  fill(body, h("p", { className: "sub" }, "Reading the manifest…"));
  const path = versionPath(model.name, version.version);
  try {
    const details = await json(path);
    const { manifest } = details;
    known.append(
      fact("Instances", count(details.instances)),
      manifest ? fact("Parameters", count(manifest.parameters)) : "",
      details.size_bytes ? fact("Size", bytes(details.size_bytes)) : "",
      details.load_s === null ? "" : fact("Loaded in", `${details.load_s.toFixed(2)} s`),
      fact("Output rows", details.rows));
    fill(body, proof(details, version, path), details.label_count > 0 && labels(details, path),
      manifest && preprocessing(manifest), manifest && files(manifest), manifest && raw(manifest));
  } catch (error) {
    fill(body, trouble(error));
  }
}

function proof(details, version, path) {
  const { manifest, self_test: test } = details;
  if (!manifest) {
    return card("Not verified", h("p", {}, "This version has no manifest: nobody can say whether it answers as the network did in training."),
      version.self_test && h("p", { className: "sub" }, version.self_test));
  }
  const images = h("div", { className: "golden" });
  manifest.golden.images.forEach((name, index) => golden(images, `${path}/golden?index=${index}`, name));
  const parity = Object.entries(manifest.parity.batches);
  return card("Verified", images,
    h("div", { className: "columns" },
      h("div", {}, h("h3", {}, "Self-test on this machine"),
        test ? [h("p", { className: "good" }, "Passed"),
          numbers([["Golden images alone", tiny(test.golden_difference)], ...Object.entries(test.batches).map(([size, value]) => [`In a batch of ${size}`, tiny(value)]), ["Allowed", tiny(test.tolerance)]], "Largest difference of a probability"),
          h("p", { className: "sub" }, test.provider, test.complete ? "" : "; larger batches and more images were left for the time after READY")] : h("p", {}, "None")),
      h("div", {}, h("h3", {}, `Parity with ${manifest.parity.reference === "PyTorch" ? "PyTorch" : "the imported file"}`),
        numbers([...parity.map(([size, value]) => [`Batch of ${size}`, tiny(value)]), ["Allowed", tiny(manifest.parity.tolerance)]], "Largest difference of a probability")),
      manifest.agreement && h("div", {}, h("h3", {}, "Agreement with fp32"), agreement(manifest.agreement))));
}

function agreement(found) {
  const rows = [["Same top class", percent(found.top1)], ["Needed", percent(found.needed)], ["Largest difference", tiny(found.largest_difference)], ["Images", `${count(found.images.count)} (${found.images.name})`]];
  if (found.accuracy !== null) rows.push(["Accuracy", percent(found.accuracy)], ["Accuracy in fp32", percent(found.fp32_accuracy)]);
  return numbers(rows, "fp32 and this version");
}

const numbers = (rows, caption) => h("table", { className: "numbers" }, h("caption", {}, caption),
  h("tbody", {}, rows.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value)))));

async function golden(images, path, name) {
  const figure = h("figure", {});
  images.append(figure);
  try {
    const url = URL.createObjectURL(await blob(path));
    urls.push(url);
    fill(figure, h("img", { src: url, alt: `Golden image ${name}`, title: name }));
  } catch (error) {
    fill(figure, h("figcaption", { className: "sub" }, `${name}: ${error.message}`));
  }
}

function labels(details, path) {
  const found = h("ol", { className: "labels", tabIndex: 0, "aria-label": "Labels" });
  const search = h("input", { type: "search", placeholder: "Label or number" });
  const told = h("p", { className: "sub", role: "status" });
  let all = null;
  const draw = async () => {
    try {
      all ||= await json(`${path}/labels`);
    } catch (error) {
      fill(told, error.message);
      return;
    }
    const word = search.value.toLowerCase().trim();
    const matches = all.map((label, index) => [index, label]).filter(([index, label]) => !word || label.toLowerCase().includes(word) || String(index) === word);
    fill(found, matches.slice(0, 200).map(([index, label]) => h("li", {}, h("span", { className: "index" }, String(index)), h("span", {}, label))));
    fill(told, matches.length > 200 ? `The first 200 of ${count(matches.length)} labels; search for others.` : `${count(matches.length)} of ${count(all.length)} labels`);
  };
  search.addEventListener("input", draw);
  draw();
  return card("Labels", field("Search labels", search), found, told);
}

function preprocessing(manifest) {
  const { preprocessing: spec, input } = manifest;
  const steps = [`${spec.color} pixels`];
  if (spec.exif_orientation) steps.push("turned upright");
  if (spec.resize) steps.push(`resized to ${spec.resize.size.join(" × ")} (${spec.resize.mode}, ${spec.resize.interpolation}, ${spec.resize.library})`);
  if (spec.crop) steps.push(`cropped to ${spec.crop.join(" × ")}`);
  if (spec.normalize !== "none") steps.push(`normalised in the ${spec.normalize === "graph" ? "network" : "server"}: mean ${spec.mean.join(", ")}, std ${spec.std.join(", ")}`);
  steps.push(`sent as ${input.datatype} ${input.shape.join(" × ")}${input.layout ? ` (${input.layout})` : ""}`);
  return card("From image to input", h("ol", { className: "steps" }, steps.map((step) => h("li", {}, step))));
}

function files(manifest) {
  const rows = Object.entries(manifest.files).map(([name, file]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, bytes(file.bytes)), h("td", { className: "code", title: file.sha256 }, file.sha256)));
  return card("Files and digests", h("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Files and digests" }, h("table", { className: "files" },
    h("thead", {}, h("tr", {}, ["File", "Size", "SHA-256"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, rows))));
}

const raw = (manifest) => h("details", { className: "card" }, h("summary", {}, "manifest.json"),
  h("pre", { className: "code", tabIndex: 0 }, JSON.stringify(manifest, null, 2)));

const card = (title, ...children) => h("section", { className: "card" }, h("h2", {}, title), ...children);
