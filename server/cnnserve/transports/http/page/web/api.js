// Requests to the server that served this page. The token is kept in the tab's session storage only.

const KEY = "cnnserve.token";
export const API = "/page/api";

// What the browser keeps for the tab or for this site. If people forbid it to keep anything, it lasts until a reload.
function storage(name) {
  try {
    return window[name];
  } catch {
    const kept = new Map();
    return { getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value), removeItem: (key) => kept.delete(key) };
  }
}

const ofTab = storage("sessionStorage");
export const ofSite = storage("localStorage");

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const token = () => ofTab.getItem(KEY) || "";

export function setToken(value) {
  if (value) ofTab.setItem(KEY, value);
  else ofTab.removeItem(KEY);
}

export const versionPath = (model, version) =>
  `${API}/models/${encodeURIComponent(model)}/versions/${encodeURIComponent(version)}`;

export const classifyPath = (model, version, topK) =>
  `/v1/models/${encodeURIComponent(model)}/versions/${encodeURIComponent(version)}:classify?top_k=${topK}`;

async function ask(path, init = {}) {
  const headers = { ...init.headers };
  if (token()) headers.Authorization = `Bearer ${token()}`;
  let response;
  try {
    response = await fetch(path, { ...init, headers, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. It may have stopped, or the network is down.", 0);
  }
  if (response.ok) return response;
  let message = `The server answered with status ${response.status}.`;
  try {
    message = (await response.json()).error || message;
  } catch {
    // A proxy in between may answer with a page of its own.
  }
  if (response.status === 401) dispatchEvent(new CustomEvent("cnnserve-token", { detail: message }));
  throw new ApiError(message, response.status);
}

export const json = async (path, init) => (await ask(path, init)).json();

export const blob = async (path, init) => (await ask(path, init)).blob();

export async function post(file, signal) {
  const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
  try {
    // A request whose file cannot be read would look like a server that does not answer.
    return { method: "POST", body: await file.arrayBuffer(), headers: { "Content-Type": type }, signal };
  } catch {
    throw new ApiError("The browser cannot read this file. It is a folder, or it was moved or changed.", 0);
  }
}

// Calls `tell` with each event of a stream of server-sent events, until the stream ends.
export async function events(path, signal, tell) {
  const response = await ask(path, { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    const found = parts.filter((part) => part.startsWith("data: ")).map((part) => JSON.parse(part.slice(6)));
    if (found.length) tell(found);
  }
}
