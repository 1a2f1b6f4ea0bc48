// A frame of one of the dropped clips, cut to the training frame as the service cuts it: scaled to
// cover, the middle kept.

import { isClip } from "./dataset.js";
import { make } from "./dom.js";

const STILL = /\.(png|jpe?g)$/i;

export class Frames {
  constructor(element, form) {
    this.form = form;
    this.sources = [];
    this.canvas = make("canvas", { width: 768, height: 768 });
    this.stage = make("div", { className: "stage" }, this.canvas);
    this.picker = make("select", { ariaLabel: "Clip" });
    this.seek = make("input", { type: "range", min: 0, max: 1000, value: 300, ariaLabel: "Moment of the clip" });
    this.controls = make("div", { className: "controls", hidden: true }, this.picker, this.seek);
    this.video = make("video", { muted: true, preload: "auto", playsInline: true });
    this.onframe = () => {};
    element.append(this.stage, this.controls);
    this.picker.addEventListener("change", () => this.open());
    this.seek.addEventListener("input", () => this.jump());
    this.video.addEventListener("loadedmetadata", () => this.jump());
    this.video.addEventListener("seeked", () => this.onframe());
    this.video.addEventListener("error", () => {
      this.failed = true;
      this.onframe();
    });
    form.dataset?.addEventListener("change", () => this.refill());
  }

  refill() {
    const clips = this.form.dataset.files.filter(({ name }) => isClip(name) && !/_mask\.[^.]+$/i.test(name));
    if (clips.length === this.sources.length && clips.every(({ file }, at) => file === this.sources[at].file)) return;
    this.sources = clips;
    this.picker.replaceChildren(...clips.map(({ name }, at) => make("option", { value: at }, name)));
    this.controls.hidden = !clips.length;
    this.open();
  }

  get source() {
    return this.sources[Number(this.picker.value)] ?? null;
  }

  open() {
    if (this.shown === this.source?.file) return;
    this.shown = this.source?.file;
    URL.revokeObjectURL(this.video.src);
    this.failed = false;
    if (this.shown) this.video.src = URL.createObjectURL(this.shown);
    else this.video.removeAttribute("src");
    this.onsource?.(this.source);
    this.onframe();
  }

  jump() {
    if (this.video.duration) this.video.currentTime = (this.video.duration * this.seek.value) / 1001;
  }

  // Draw the frame; returns the canvas' context. ``over``: another picture in the same cut.
  paint(over = null, alpha = 1) {
    const [width, height] = this.form.frameSize() ?? [768, 768];
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const context = this.canvas.getContext("2d");
    context.globalAlpha = 1;
    context.clearRect(0, 0, width, height);
    cover(context, this.video, this.video.videoWidth, this.video.videoHeight);
    if (over) {
      context.globalAlpha = alpha;
      cover(context, over, over.videoWidth ?? over.width, over.videoHeight ?? over.height);
      context.globalAlpha = 1;
    }
    if (!this.video.videoWidth) this.explain(context, width, height);
    return context;
  }

  explain(context, width, height) {
    const style = getComputedStyle(this.stage);
    context.fillStyle = style.color;
    context.font = `${Math.round(width / 26)}px ${style.fontFamily}`;
    context.textAlign = "center";
    const text = this.failed ? "This browser can't play the clip" : `A frame of your clip, ${width}×${height}`;
    context.fillText(text, width / 2, height * 0.08);
  }
}

function cover(context, picture, width, height) {
  if (!width || !height) return;
  const frame = context.canvas;
  const scale = Math.max(frame.width / width, frame.height / height);
  const [w, h] = [width * scale, height * scale];
  context.drawImage(picture, (frame.width - w) / 2, (frame.height - h) / 2, w, h);
}

export { STILL };
