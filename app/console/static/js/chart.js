// The curve of one request: follows, smooths, zooms, pans. The server thins it, so that any number
// of steps is a thousand points; what is zoomed into is asked for again, finer.

import uPlot from "../vendor/uplot/uPlot.esm.js";
import { axes, colours, fetchCurve, shown, smoothed } from "./curve-data.js";
import { later } from "./dom.js";

const MAX_LIVE_POINTS = 3000;
const HEIGHT = 260;

export class Chart {
  constructor(element, base, { lastStep }) {
    this.element = element;
    this.base = base;
    this.lastStep = lastStep;
    this.field = "loss";
    this.smoothing = 0.8;
    this.log = false;
    this.range = null; // [first, last] that is zoomed into; null: everything
    this.columns = null;
    this.refine = later(200, () => this.load());
    this.draw = frameLimited(() => this.render());
    new ResizeObserver(() => this.plot?.setSize({ width: element.clientWidth, height: HEIGHT })).observe(element);
    document.addEventListener("theme-changed", () => this.rebuild());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.rebuild());
  }

  async load() {
    const [first, last] = this.range ?? [1, null];
    const columns = await fetchCurve(this.base, { first, last });
    this.columns = columns;
    this.newest = columns.last_step;
    this.draw();
    return columns;
  }

  // Steps as they happen. A range that is zoomed into stays as it is.
  append(events) {
    const steps = events.filter((event) => event.kind === "step");
    if (!steps.length) return;
    this.newest = Math.max(this.newest ?? 0, steps.at(-1).data.step);
    if (!this.columns || this.range) return;
    const { columns } = this;
    for (const { data } of steps) {
      if (data.step <= (columns.steps.at(-1) ?? 0)) continue;
      columns.steps.push(data.step);
      columns.loss.push(data.loss);
      columns.loss_min.push(data.loss);
      columns.loss_max.push(data.loss);
      columns.lr.push(data.lr);
      columns.step_time_s.push(data.step_time_s);
    }
    if (columns.steps.length > MAX_LIVE_POINTS) this.load();
    else this.draw();
  }

  set(changes) {
    Object.assign(this, changes);
    this.rebuild();
  }

  rebuild() {
    this.plot?.destroy();
    this.plot = null;
    this.draw();
  }

  move(how) {
    const end = Math.max(this.newest ?? 0, 2);
    const [first, last] = this.range ?? [1, end];
    const width = last - first;
    const moves = {
      left: [first - width / 2, last - width / 2],
      right: [first + width / 2, last + width / 2],
      in: [first + width / 4, last - width / 4],
      out: [first - width / 2, last + width / 2],
      all: [1, end],
    };
    this.show(...moves[how]);
  }

  show(first, last) {
    const end = Math.max(this.newest ?? 0, 2);
    const width = Math.max(4, Math.min(last - first, end - 1));
    const start = Math.max(1, Math.min(first, end - width));
    this.range = start <= 1 && start + width >= end ? null : [Math.round(start), Math.round(start + width)];
    this.plot?.setScale("x", { min: this.range?.[0] ?? 1, max: this.range?.[1] ?? end });
    this.refine();
  }

  render() {
    const points = this.columns?.steps.length ?? 0;
    if (!points) {
      this.element.replaceChildren(Object.assign(document.createElement("p"), { className: "none", textContent: "The curve begins with the first step." }));
      return;
    }
    const data = this.data();
    if (this.plot) {
      this.plot.setData(data, false);
      const [first, last] = this.range ?? [this.columns.steps[0], Math.max(this.columns.steps.at(-1), this.columns.steps[0] + 1)];
      this.plot.setScale("x", { min: first, max: last });
      return;
    }
    this.element.replaceChildren();
    this.plot = new uPlot(this.options(), data, this.element);
    this.pan();
  }

  data() {
    const { columns, field } = this;
    const values = columns[field];
    const isLoss = field === "loss";
    return [
      columns.steps,
      isLoss ? columns.loss_min : values,
      isLoss ? columns.loss_max : values,
      values,
      smoothed(values, field === "lr" ? 0 : this.smoothing),
    ];
  }

  options() {
    const colour = colours();
    const hidden = { stroke: "transparent", points: { show: false }, label: "" };
    return {
      width: this.element.clientWidth,
      height: HEIGHT,
      scales: { x: { time: false }, y: { distr: this.log ? 3 : 1 } },
      axes: axes(colour),
      bands: [{ series: [2, 1], fill: colour.soft }],
      series: [
        { label: "Step", value: (_, value) => (value == null ? "–" : value.toLocaleString()) },
        { ...hidden, label: "Lowest", value: (_, value) => shown(value) },
        { ...hidden, label: "Highest", value: (_, value) => shown(value) },
        { label: "Mean", stroke: colour.soft, width: 1, points: { show: false }, value: (_, value) => shown(value) },
        { label: "Smoothed", stroke: colour.accent, width: 2, points: { show: false }, value: (_, value) => shown(value) },
      ],
      cursor: { drag: { x: true, y: false, setScale: false }, focus: { prox: 30 } },
      hooks: {
        setSelect: [
          (plot) => {
            if (plot.select.width < 8) return;
            const first = plot.posToVal(plot.select.left, "x");
            const last = plot.posToVal(plot.select.left + plot.select.width, "x");
            plot.setSelect({ width: 0, height: 0 }, false);
            this.show(first, last);
          },
        ],
      },
    };
  }

  // Shift and drag moves the view; uPlot's own drag selects.
  pan() {
    const over = this.plot.over;
    over.addEventListener(
      "mousedown",
      (down) => {
        if (!down.shiftKey) return;
        down.stopImmediatePropagation();
        const { min, max } = this.plot.scales.x;
        const perPixel = (max - min) / over.clientWidth;
        const drag = (event) => {
          const shift = (down.clientX - event.clientX) * perPixel;
          this.show(min + shift, max + shift);
        };
        document.addEventListener("mousemove", drag);
        document.addEventListener("mouseup", () => document.removeEventListener("mousemove", drag), { once: true });
      },
      { capture: true },
    );
  }
}

// At most once per frame, however often it is asked for.
function frameLimited(run) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      run();
    });
  };
}
