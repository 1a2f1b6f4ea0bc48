// Previews by prompt, their steps side by side, played together.

import { $$, make } from "./dom.js";

export class Previews {
  constructor(element, button, first) {
    this.element = element;
    this.button = button;
    this.rows = new Map();
    button?.addEventListener("click", () => playTogether($$("video", element), button));
    for (const preview of first) this.add(preview);
    if (!first.length) element.append(make("p", { className: "none" }, "The first previews come after a quarter of the steps."));
  }

  take(events) {
    for (const { kind, data } of events) {
      if (kind === "preview") this.add({ ...data, url: data.file?.url });
    }
  }

  add(preview) {
    if (!preview.url) return;
    if (!this.rows.size) this.element.replaceChildren();
    const row = this.row(preview);
    if (row.steps.has(preview.step)) return;
    const figure = make(
      "figure",
      {},
      make("video", { src: preview.url, preload: "metadata", muted: true, loop: true, playsInline: true, controls: true, ariaLabel: `${preview.prompt}, step ${preview.step}` }),
      make("figcaption", {}, `Step ${preview.step.toLocaleString()}`),
    );
    row.steps.set(preview.step, figure);
    row.list.replaceChildren(...[...row.steps].sort((a, b) => a[0] - b[0]).map(([, made]) => make("li", {}, made)));
    this.button.hidden = $$("video", this.element).length < 2;
  }

  row(preview) {
    let row = this.rows.get(preview.index);
    if (!row) {
      const list = make("ul", { tabIndex: 0, ariaLabel: `Previews of ${preview.prompt}` });
      list.setAttribute("role", "list");
      this.element.append(make("section", { className: "preview-row" }, make("h3", {}, preview.prompt), list));
      row = { list, steps: new Map() };
      this.rows.set(preview.index, row);
    }
    return row;
  }
}

// From their beginnings, at the same moment; again: stop.
export function playTogether(videos, button) {
  const playing = videos.some((video) => !video.paused);
  for (const video of videos) {
    if (playing) {
      video.pause();
    } else {
      video.currentTime = 0;
      video.play().catch(() => {});
    }
  }
  button.textContent = playing ? "Play side by side" : "Pause";
}
