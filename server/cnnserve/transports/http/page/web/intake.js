// What "Try it" and "Why" share: choosing a model and version, and taking in images.

import { blob, json } from "./api.js";
import { fill, h, options, trouble } from "./dom.js";
import { classifiers, state } from "./state.js";

const AGAIN_MS = 2000;

// A select of models and one of their versions. Calls `changed` when what is chosen changes, also because a version goes.
export function chooser(changed, { optional = false } = {}) {
  const model = h("select", {});
  const version = h("select", {});
  const draw = () => {
    const pairs = classifiers();
    const names = [...new Set(pairs.map(([name]) => name))];
    const before = chosen();
    options(model, [...(optional ? [["", "nothing"]] : []), ...names.map((name) => [name, name])], before?.model ?? model.value);
    drawVersions(before?.version);
    if (JSON.stringify(before) !== JSON.stringify(chosen())) changed();
  };
  const drawVersions = (before) => {
    const labels = new Map((state.models || []).find(({ name }) => name === model.value)?.versions.map((one) => [one.version, one.version_labels]));
    const versions = classifiers().filter(([name]) => name === model.value).map(([, number]) => number);
    options(version, versions.map((number) => [number, [number, ...(labels.get(number) || [])].join(" · ")]), before);
    version.disabled = versions.length < 2;
  };
  const chosen = () => (model.value && version.value ? { model: model.value, version: version.value } : null);
  model.addEventListener("change", () => {
    drawVersions();
    changed();
  });
  version.addEventListener("change", changed);
  const choose = (name, number) => {
    model.value = name;
    drawVersions(number);
  };
  return { model, version, draw, chosen, choose };
}

// Buttons, samples, drop and paste. Calls `take` with a list of files.
export function intake(section, take, { many = true } = {}) {
  const use = (files) => files.length && take([...files]);
  const file = h("input", { type: "file", accept: "image/*", multiple: many, hidden: true, "aria-label": "Image files", onchange: taken });
  const camera = h("input", { type: "file", accept: "image/*", capture: "environment", hidden: true, "aria-label": "Photograph", onchange: taken });
  function taken(event) {
    use(event.target.files);
    event.target.value = "";
  }
  const samples = h("div", { className: "samples", role: "group", "aria-label": "Sample images" });
  const problem = h("div", {});
  const zone = h("div", { className: "drop" },
    h("p", {}, h("strong", {}, many ? "Drop images here" : "Drop an image here"), h("span", { className: "paste" }, " or paste with Ctrl+V")),
    h("div", { className: "row" },
      h("button", { type: "button", className: "primary", onclick: () => file.click() }, many ? "Choose images" : "Choose an image"),
      h("button", { type: "button", onclick: () => camera.click() }, "Take a photo")),
    file, camera, samples, problem);
  showSamples(samples, async (name) => {
    fill(problem);
    try {
      take([await sample(name)]);
    } catch (error) {
      fill(problem, trouble(error));
    }
  });
  section.addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  section.addEventListener("dragleave", (event) => section.contains(event.relatedTarget) || zone.classList.remove("over"));
  section.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    use(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => {
    if (section.hidden || !event.clipboardData.files.length) return;
    event.preventDefault();
    use(event.clipboardData.files);
  });
  return zone;
}

// A file that is dropped beside the place for it must not replace the page.
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => event.preventDefault());

async function showSamples(place, chosen) {
  let found;
  try {
    found = await json("/page/samples/index.json");
  } catch {
    setTimeout(() => showSamples(place, chosen), AGAIN_MS);
    return;
  }
  fill(place, found.map(({ file, name }) => h("button", { type: "button", className: "sample", title: name, onclick: () => chosen(file) },
    h("img", { src: `/page/samples/${file}`, alt: name, loading: "lazy" }))));
}

async function sample(name) {
  const data = await blob(`/page/samples/${name}`);
  return new File([data], name, { type: data.type });
}
