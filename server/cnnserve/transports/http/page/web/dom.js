// Elements and numbers. Text from the server becomes text nodes and attributes, never HTML.

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name in element && !name.startsWith("aria") && name !== "list") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function fill(element, ...children) {
  element.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function empty(title, text, ...more) {
  return h("div", { className: "empty" }, h("p", { className: "empty-title" }, title), text && h("p", {}, text), ...more);
}

export function trouble(error) {
  return h("div", { className: "trouble", role: "alert" }, error.message || String(error));
}

// An error that comes again and again is read aloud only once.
export function repeated(place, error) {
  if (place.textContent !== error.message) fill(place, trouble(error));
}

// As fill, and the link that had the focus has it again.
export function refill(element, ...children) {
  const href = element.contains(document.activeElement) && document.activeElement.getAttribute("href");
  fill(element, ...children);
  if (href) [...element.querySelectorAll("a")].find((link) => link.getAttribute("href") === href)?.focus({ preventScroll: true });
}

// Text of others inside a line of ours: whatever its direction, it does not change the order of what stands beside it.
export const apart = (text) => `\u2068${text}\u2069`;

export function field(label, control) {
  control.id ||= `f${(field.count = (field.count || 0) + 1)}`;
  return h("div", { className: "field" }, h("label", { htmlFor: control.id }, label), control);
}

export function options(select, values, chosen) {
  fill(select, values.map(([value, text]) => h("option", { value }, text)));
  if (values.some(([value]) => value === chosen)) select.value = chosen;
}

const whole = new Intl.NumberFormat("en-US");
export const count = (value) => whole.format(value);

export function bytes(value) {
  if (value < 1000) return `${value} B`;
  const units = ["kB", "MB", "GB", "TB"];
  let index = -1;
  do {
    value /= 1000;
    index += 1;
  } while (value >= 999.5 && index < 3);
  return `${value < 9.95 ? value.toFixed(1) : Math.round(value)} ${units[index]}`;
}

export function duration(us) {
  if (us < 1000) return `${Math.round(us)} µs`;
  if (us < 1e6) return `${(us / 1000).toFixed(us < 1e5 ? 1 : 0)} ms`;
  return `${(us / 1e6).toFixed(1)} s`;
}

export const ms = (value) => (value === null || value === undefined ? "–" : duration(value * 1000));

export function rate(value) {
  if (!value) return "0";
  return value < 9.95 ? value.toFixed(1) : count(Math.round(value));
}

export const percent = (value) => `${(value * 100).toFixed(value > 0.0995 || value === 0 ? 1 : 2)} %`;

export function tiny(value) {
  if (value === 0) return "0";
  return value < 1e-3 ? value.toExponential(1).replace("e-", " × 10⁻").replace(/⁻(\d+)/, (_, digits) => "⁻" + [...digits].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("")) : String(Number(value.toPrecision(3)));
}
