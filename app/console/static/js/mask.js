// Each clip's mask, laid over it: white is made anew, black is kept. It shows which clip has none.

import { make } from "./dom.js";
import { STILL } from "./frames.js";

export class Mask {
  constructor(element, form, frames) {
    this.form = form;
    this.frames = frames;
    this.note = make("p", { className: "fine", role: "status" }, "Drop a folder: the mask of each clip, named like it with _mask, is laid over it here.");
    element.append(this.note);
    frames.onsource = (source) => this.open(source);
    frames.onframe = () => this.paint();
    this.paint();
  }

  maskOf(source) {
    const stem = source.name.replace(/\.[^.]+$/, "").toLowerCase();
    return this.form.dataset.files.find(({ name }) => name.replace(/\.[^.]+$/, "").toLowerCase() === `${stem}_mask`) ?? null;
  }

  async open(source) {
    this.picture = null;
    if (!source) return;
    const found = this.maskOf(source);
    this.note.textContent = found ? `${found.name}: what is coloured is made anew, the rest is kept.` : `${source.name} has no mask: ${source.name.replace(/\.[^.]+$/, "_mask")} as an image or a video is missing.`;
    this.note.className = found ? "fine" : "note";
    if (!found) return;
    const url = URL.createObjectURL(found.file);
    if (STILL.test(found.name)) {
      this.picture = tinted(await createImageBitmap(found.file));
      URL.revokeObjectURL(url);
    } else {
      const video = make("video", { src: url, muted: true, preload: "auto" });
      video.addEventListener("loadeddata", () => {
        this.moving = video;
        this.paint();
      });
    }
    this.paint();
  }

  update() {
    this.paint();
  }

  paint() {
    if (this.moving && this.frames.source) {
      if (Math.abs(this.moving.currentTime - this.frames.video.currentTime) > 0.05) {
        this.moving.addEventListener("seeked", () => this.paint(), { once: true });
        this.moving.currentTime = Math.min(this.frames.video.currentTime, this.moving.duration || 0);
      }
      this.picture = tinted(this.moving);
    }
    this.frames.paint(this.picture, 0.55);
  }
}

// White becomes the accent colour, black becomes clear.
function tinted(picture) {
  const width = picture.videoWidth ?? picture.width;
  const height = picture.videoHeight ?? picture.height;
  if (!width) return null;
  const canvas = make("canvas", { width, height });
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  const pixels = context.getImageData(0, 0, width, height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    pixels.data[at + 3] = (pixels.data[at] + pixels.data[at + 1] + pixels.data[at + 2]) / 3;
    pixels.data[at] = 255;
    pixels.data[at + 1] = 60;
    pixels.data[at + 2] = 110;
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}
