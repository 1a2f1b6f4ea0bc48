// Loss curves of two to four requests, laid over each other, and their previews played together.

import uPlot from "../vendor/uplot/uPlot.esm.js";
import { axes, colours, fetchCurve, shown, smoothed } from "./curve-data.js";
import { $, $$, dataOf } from "./dom.js";
import { playTogether } from "./previews.js";

const requests = dataOf("compared") ?? [];
const element = $("#chart");
let plot;

const nameOf = (found) => `${found.label || "Untitled"} ${found.request_id.slice(0, 8)}`;

function draw(curves) {
  const colour = colours();
  const smoothing = Number($("#smoothing").value);
  const tables = curves.map((curve) => [curve.steps, smoothed(curve.loss, smoothing)]);
  plot?.destroy();
  if (!tables.some(([steps]) => steps.length)) {
    element.textContent = "None of them has a curve yet.";
    return;
  }
  plot = new uPlot(
    {
      width: element.clientWidth,
      height: 280,
      scales: { x: { time: false }, y: { distr: $("#log-scale").checked ? 3 : 1 } },
      axes: axes(colour),
      series: [
        { label: "Step", value: (_, value) => (value == null ? "–" : value.toLocaleString()) },
        ...requests.map((found, at) => ({
          label: nameOf(found).slice(0, 40),
          stroke: colour.several[at],
          width: 2,
          spanGaps: true,
          points: { show: false },
          dash: [[], [8, 4], [2, 3], [10, 3, 2, 3]][at],
          value: (_, value) => shown(value),
        })),
      ],
    },
    uPlot.join(tables),
    element,
  );
}

if (element) {
  const curves = await Promise.all(requests.map((found) => fetchCurve(`/requests/${found.request_id}`)));
  const again = () => draw(curves);
  again();
  for (const id of ["#smoothing", "#log-scale"]) $(id).addEventListener("input", again);
  document.addEventListener("theme-changed", again);
  new ResizeObserver(() => plot?.setSize({ width: element.clientWidth, height: 280 })).observe(element);
  const videos = $$("#previews video");
  const button = $("#play-all");
  button.hidden = videos.length < 2;
  button.addEventListener("click", () => playTogether(videos, button));
}
document.documentElement.dataset.ready = "true";
