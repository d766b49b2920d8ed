// The frame of the page: views, token, colours, and whether the server answers.

import { ofSite, setToken, token } from "./api.js";
import { fill, h } from "./dom.js";
import { live } from "./live.js";
import { models } from "./models.js";
import { follow, modelState, onModels, refresh, state } from "./state.js";
import { tryIt } from "./try.js";
import { why } from "./why.js";

const views = { models, try: tryIt, why, live };
const titles = { models: "Models", try: "Try it", why: "Why", live: "Live" };
const started = new Set();
let shown = "";

function show() {
  const [name, ...rest] = location.hash.slice(1).split("/").map(decodeURIComponentSafely);
  const view = Object.hasOwn(views, name) ? name : "models";
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.dataset.view !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${titles[view]} · cnnserve`;
  if (!started.has(view)) {
    started.add(view);
    views[view].start(document.querySelector(`main > section[data-view="${view}"]`));
  }
  if (shown && shown !== view) views[shown].leave?.();
  shown = view;
  views[view].enter?.(rest);
}

function decodeURIComponentSafely(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// Token

const dialog = document.getElementById("token-dialog");
const input = document.getElementById("token-input");
const problem = document.getElementById("token-error");

function askToken(message = "") {
  if (dialog.open) return;
  fill(problem, token() ? message : "");
  input.value = token();
  document.getElementById("token-forget").hidden = !token();
  dialog.showModal();
}

function useToken(value) {
  setToken(value);
  dialog.close();
  tokenButton.classList.toggle("on", Boolean(token()));
  refresh();
  show();
}

const tokenButton = document.getElementById("token-button");
tokenButton.addEventListener("click", () => askToken());
tokenButton.classList.toggle("on", Boolean(token()));
document.getElementById("token-cancel").addEventListener("click", () => dialog.close());
document.getElementById("token-forget").addEventListener("click", () => useToken(""));
document.getElementById("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const value = input.value.trim();
  if (/^[!-~]*$/.test(value)) useToken(value);
  else fill(problem, "A token has no spaces, and only letters, digits and signs of ASCII.");
});
addEventListener("cnnserve-token", (event) => askToken(event.detail));

// Colours

const THEMES = { auto: ["Auto", "auto, as the system"], light: ["Light", "light"], dark: ["Dark", "dark"] };
const themeButton = document.getElementById("theme-button");

function setTheme(theme) {
  ofSite.setItem("cnnserve.theme", theme);
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  fill(themeButton, THEMES[theme][0]);
  themeButton.setAttribute("aria-label", `Colours: ${THEMES[theme][1]}`);
  dispatchEvent(new Event("cnnserve-theme"));
}

const names = Object.keys(THEMES);
const theme = () => names.find((name) => name === ofSite.getItem("cnnserve.theme")) || "auto";
themeButton.addEventListener("click", () => setTheme(names[(names.indexOf(theme()) + 1) % names.length]));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("cnnserve-theme")));
setTheme(theme());

// Server

onModels(() => {
  const server = document.getElementById("server");
  if (state.error) {
    const words = { 0: "No connection", 401: "Token needed", 403: "No right to read" };
    fill(server, h("span", { className: "dot bad" }), words[state.error.status] || "Error");
    return;
  }
  const ready = state.models.filter((model) => modelState(model) === "READY").length;
  const all = state.models.length;
  fill(server, h("span", { className: `dot ${ready === all && all ? "good" : ready ? "some" : "bad"}` }), `${ready} of ${all} ready`);
});

addEventListener("hashchange", () => {
  show();
  scrollTo(0, 0);
});

// As a link to "#main" it would also choose a view.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main").focus();
});
show();
follow();
