// The points of a curve, as the server thins them, and what smoothing makes of them.

import { get } from "./api.js";

export async function fetchCurve(base, { first = 1, last = null, points = 1000 } = {}) {
  const range = last == null ? "" : `&last=${Math.max(first, Math.round(last))}`;
  return get(`${base}/curve?points=${points}&first=${Math.max(1, Math.round(first))}${range}`);
}

// Exponential moving average, as the field draws loss curves; gaps stay gaps.
export function smoothed(values, weight) {
  let mean = 0;
  let mass = 0;
  return values.map((value) => {
    if (value == null) return null;
    mean = weight * mean + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return mean / mass;
  });
}

export function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return {
    accent: of("--accent"),
    soft: of("--chart-soft"),
    grid: of("--line"),
    text: of("--muted"),
    several: [of("--accent"), of("--warn"), of("--good"), of("--bad")],
  };
}

const compact = (value) => {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size < 0.001 || size >= 1e5 ? value.toExponential(1) : String(Number(value.toPrecision(4)));
};

// Axes that both pages with curves share.
export function axes(colour) {
  const axis = { stroke: colour.text, grid: { stroke: colour.grid, width: 1 }, ticks: { stroke: colour.grid, width: 1 } };
  return [
    { ...axis, size: 34, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? tick.toLocaleString() : "")) },
    { ...axis, size: 62, values: (_, ticks) => ticks.map((tick) => (tick == null ? "" : compact(tick))) },
  ];
}

export const shown = (value) => (value == null ? "–" : compact(value));
