// A line chart over time on a canvas: one to three series, a scale of round numbers, and the value under the pointer.

import { fill, h } from "./dom.js";

const PAD = { left: 8, right: 8, top: 14, bottom: 20 };

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// The next round number above: 1, 2 or 5 times a power of ten.
function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

export class Chart {
  // `series`: [{name, color, of}], `of` returns the value of a sample or null; `format`: for values.
  constructor(title, series, format, { area = false } = {}) {
    Object.assign(this, { title, series, format, area, samples: [], span: 60 });
    this.values = h("span", { className: "chart-values" });
    this.canvas = h("canvas", { role: "img", "aria-label": title });
    this.element = h("figure", { className: "chart card" }, h("figcaption", {}, h("span", {}, title), this.values), this.canvas);
    this.canvas.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  show(samples, span) {
    this.samples = samples;
    this.span = span;
    this.draw();
  }

  point(x) {
    this.at = x;
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width) return;
    const ratio = devicePixelRatio || 1;
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = `11px ${getComputedStyle(this.canvas).fontFamily}`;
    const end = this.samples.at(-1)?.t ?? Date.now() / 1000;
    const seen = this.samples.filter(({ t }) => t >= end - this.span - 1);
    const most = ceiling(Math.max(0, ...seen.flatMap((sample) => this.series.map(({ of }) => of(sample) ?? 0))));
    const x = (t) => PAD.left + (1 - (end - t) / this.span) * (width - PAD.left - PAD.right);
    const y = (value) => height - PAD.bottom - (value / most) * (height - PAD.top - PAD.bottom);
    this.grid(pen, width, height, most, y);
    for (const one of this.series) this.line(pen, seen, one, x, y);
    const marked = this.at === null || this.at === undefined ? seen.at(-1) : nearest(seen, (t) => Math.abs(x(t) - this.at));
    if (marked && this.at !== null && this.at !== undefined) this.mark(pen, marked, x, y, height, end);
    fill(this.values, this.series.map(({ name, color: ink, of }) => h("span", {},
      h("i", { style: { background: `var(--${ink})` } }), name && `${name} `, h("b", {}, marked ? this.format(of(marked)) : "–"))));
  }

  grid(pen, width, height, most, y) {
    pen.strokeStyle = color("line");
    pen.fillStyle = color("muted");
    for (const value of [0, most / 2, most]) {
      const at = Math.round(y(value)) + 0.5;
      pen.beginPath();
      pen.moveTo(PAD.left, at);
      pen.lineTo(width - PAD.right, at);
      pen.stroke();
      if (value) pen.fillText(this.format(value), PAD.left, at - 3);
    }
    pen.fillText(this.span >= 120 ? `${Math.round(this.span / 60)} min ago` : `${this.span} s ago`, PAD.left, height - 5);
    pen.textAlign = "right";
    pen.fillText("now", width - PAD.right, height - 5);
    pen.textAlign = "left";
  }

  line(pen, seen, { color: ink, of }, x, y) {
    pen.strokeStyle = pen.fillStyle = color(ink);
    pen.lineWidth = 1.75;
    pen.lineJoin = "round";
    let run = [];
    const flush = () => {
      if (run.length === 1) pen.fillRect(run[0][0] - 1, run[0][1] - 1, 2, 2);
      else if (run.length) {
        pen.beginPath();
        run.forEach((point) => pen.lineTo(...point));
        pen.stroke();
        if (this.area) {
          pen.lineTo(run.at(-1)[0], y(0));
          pen.lineTo(run[0][0], y(0));
          pen.globalAlpha = 0.1;
          pen.fill();
          pen.globalAlpha = 1;
        }
      }
      run = [];
    };
    let before = null;
    for (const sample of seen) {
      const value = of(sample);
      // Nobody looked in between, or there was nothing to measure.
      if (value === null || (before !== null && sample.t - before > 3)) flush();
      if (value !== null) run.push([x(sample.t), y(value)]);
      before = sample.t;
    }
    flush();
  }

  mark(pen, sample, x, y, height, end) {
    pen.strokeStyle = color("muted");
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(x(sample.t), PAD.top);
    pen.lineTo(x(sample.t), height - PAD.bottom);
    pen.stroke();
    for (const { of, color: ink } of this.series) {
      if (of(sample) === null) continue;
      pen.fillStyle = color(ink);
      pen.beginPath();
      pen.arc(x(sample.t), y(of(sample)), 3, 0, 7);
      pen.fill();
    }
    pen.fillStyle = color("muted");
    const text = `${Math.round(end - sample.t)} s before`;
    pen.fillText(text, Math.min(x(sample.t) + 4, this.canvas.clientWidth - pen.measureText(text).width - 4), PAD.top - 3);
  }
}

const nearest = (samples, distance) => samples.reduce((best, sample) => (!best || distance(sample.t) < distance(best.t) ? sample : best), null);
