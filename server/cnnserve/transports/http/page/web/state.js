// The list of models, which all views share, and what people chose. One request every few seconds while the page is seen.

import { API, json } from "./api.js";

const EVERY_MS = 5000;

export const state = { models: null, error: null };
const listeners = new Set();
let text = "";

export function onModels(listener) {
  listeners.add(listener);
  if (state.models || state.error) listener();
}

export async function refresh() {
  try {
    // A server that hangs does not answer either.
    const { models } = await json(`${API}/models`, { signal: AbortSignal.timeout(EVERY_MS) });
    const now = JSON.stringify(models);
    if (now === text && !state.error) return;
    text = now;
    state.models = models;
    state.error = null;
  } catch (error) {
    state.error = error;
  }
  for (const listener of listeners) listener();
}

export function follow() {
  refresh();
  setInterval(() => document.hidden || (state.error && state.error.status === 401) || refresh(), EVERY_MS);
  document.addEventListener("visibilitychange", () => document.hidden || refresh());
}

// MODEL_STATE_READY -> READY
const WORDS = ["", "LOADING", "READY", "UNLOADING", "UNAVAILABLE", "BUILDING"];
export const stateOf = (version) => (typeof version.state === "number" ? WORDS[version.state] || "UNKNOWN" : String(version.state).replace("MODEL_STATE_", ""));

export const isReady = (version) => stateOf(version) === "READY";

export const newestReady = (model) => [...model.versions].reverse().find(isReady);

// Of READY versions that take images: [[model, version], ...], the newest of each model first.
export function classifiers() {
  return (state.models || []).flatMap((model) =>
    [...model.versions].reverse().filter((version) => isReady(version) && version.accepts_images)
      .map((version) => [model.name, version.version]));
}

export function modelState(model) {
  const found = newestReady(model) || model.versions.at(-1);
  return found ? stateOf(found) : "UNAVAILABLE";
}
