// The kept rectangle, drawn in pixels of the training frame. The grid is the model's: what is kept
// are whole cells of 32 pixels, so the corners snap to them.

import { make } from "./dom.js";

const CELL = 32;
const REACH = 14; // pixels on the screen around a corner or an edge

export class Rectangle {
  constructor(element, form, frames) {
    this.form = form;
    this.frames = frames;
    const { canvas } = frames;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.ariaLabel = "Kept rectangle. Arrow keys move it by 32 pixels, with Shift they change its size.";
    element.append(make("p", { className: "fine" }, "Drag to draw what is kept; everything around it is learned. Arrow keys move it, Shift and arrows resize it."));
    frames.onframe = () => this.paint();
    canvas.addEventListener("pointerdown", (event) => this.grab(event));
    canvas.addEventListener("keydown", (event) => this.key(event));
    if (!this.corners()) this.reset();
    this.paint();
  }

  // The middle two thirds, to begin with.
  reset() {
    const [width, height] = this.form.frameSize() ?? [768, 768];
    const snap = (value) => Math.round(value / CELL) * CELL;
    this.put([snap(width / 6), snap(height / 6), snap((width * 5) / 6), snap((height * 5) / 6)]);
  }

  corners() {
    const found = [...(this.form.valueOf("crop_top_left") ?? []), ...(this.form.valueOf("crop_bottom_right") ?? [])];
    return found.length === 4 && found.every((value) => typeof value === "number") ? found : null;
  }

  put([left, top, right, bottom]) {
    this.form.write("crop_top_left", [left, top]);
    this.form.write("crop_bottom_right", [right, bottom]);
  }

  update() {
    const size = String(this.form.frameSize());
    const corners = this.corners();
    const [width, height] = this.form.frameSize() ?? [768, 768];
    // Another frame: the old rectangle may lie outside of it.
    if (this.size && this.size !== size && corners && (corners[2] > width || corners[3] > height)) {
      this.size = size;
      this.reset();
      return;
    }
    this.size = size;
    this.paint();
  }

  at(event) {
    const box = this.frames.canvas.getBoundingClientRect();
    const scale = this.frames.canvas.width / box.width;
    return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale, reach: REACH * scale };
  }

  grab(down) {
    down.preventDefault();
    const { canvas } = this.frames;
    canvas.focus();
    canvas.setPointerCapture(down.pointerId);
    const start = this.at(down);
    const before = this.corners();
    const how = before ? holdOf(before, start) : "new";
    const drag = (event) => this.put(this.snapped(moved(how, before, start, this.at(event))));
    canvas.addEventListener("pointermove", drag);
    canvas.addEventListener("pointerup", () => canvas.removeEventListener("pointermove", drag), { once: true });
  }

  // Inside the frame, on cells, at least one cell large.
  snapped([x1, y1, x2, y2]) {
    const along = (one, two, end) => {
      const [low, high] = [Math.min(one, two), Math.max(one, two)].map((value) => Math.round(Math.max(0, Math.min(value, end)) / CELL) * CELL);
      const first = Math.min(low, end - CELL);
      return [first, Math.max(high, first + CELL)];
    };
    const { width, height } = this.frames.canvas;
    const [left, right] = along(x1, x2, width);
    const [top, bottom] = along(y1, y2, height);
    return [left, top, right, bottom];
  }

  key(event) {
    const step = { ArrowLeft: [-CELL, 0], ArrowRight: [CELL, 0], ArrowUp: [0, -CELL], ArrowDown: [0, CELL] }[event.key];
    const corners = this.corners();
    if (!step || !corners) return;
    event.preventDefault();
    const [left, top, right, bottom] = corners;
    const [dx, dy] = step;
    const { width, height } = this.frames.canvas;
    if (event.shiftKey) {
      this.put(this.snapped([left, top, Math.max(left + CELL, right + dx), Math.max(top + CELL, bottom + dy)]));
    } else if (left + dx >= 0 && top + dy >= 0 && right + dx <= width && bottom + dy <= height) {
      this.put([left + dx, top + dy, right + dx, bottom + dy]);
    }
  }

  paint() {
    const context = this.frames.paint();
    const { width, height } = context.canvas;
    const corners = this.corners();
    if (!corners) return;
    const [left, top, right, bottom] = corners.map((value) => Math.floor(value / CELL) * CELL);
    const accent = getComputedStyle(document.documentElement).getPropertyValue("--accent").trim();
    context.fillStyle = "rgb(0 0 0 / 58%)";
    context.fillRect(0, 0, width, top);
    context.fillRect(0, bottom, width, height - bottom);
    context.fillRect(0, top, left, bottom - top);
    context.fillRect(right, top, width - right, bottom - top);
    context.lineWidth = Math.max(2, width / 320);
    context.strokeStyle = accent;
    context.strokeRect(left, top, right - left, bottom - top);
    const text = `${right - left}×${bottom - top}`;
    context.font = `600 ${Math.round(width / 34)}px system-ui, sans-serif`;
    context.textAlign = "left";
    const box = context.measureText(text).width + width / 50;
    context.fillStyle = accent;
    context.fillRect(left, top, box, width / 22);
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--on-accent").trim();
    context.fillText(text, left + width / 100, top + width / 30);
  }
}

// Which edges are held at a point: some of "left right top bottom", "all", or "new".
function holdOf([left, top, right, bottom], { x, y, reach }) {
  const near = (one, two) => Math.abs(one - two) < reach;
  const within = x > left - reach && x < right + reach && y > top - reach && y < bottom + reach;
  const held = within ? [near(x, left) && "left", near(x, right) && "right", near(y, top) && "top", near(y, bottom) && "bottom"].filter(Boolean) : [];
  if (held.length) return held;
  return within ? "all" : "new";
}

function moved(how, before, start, now) {
  if (how === "new") return [start.x, start.y, now.x, now.y];
  const [dx, dy] = [now.x - start.x, now.y - start.y];
  const [left, top, right, bottom] = before;
  if (how === "all") {
    return [left + dx, top + dy, right + dx, bottom + dy];
  }
  return [
    how.includes("left") ? Math.min(left + dx, right - CELL) : left,
    how.includes("top") ? Math.min(top + dy, bottom - CELL) : top,
    how.includes("right") ? Math.max(right + dx, left + CELL) : right,
    how.includes("bottom") ? Math.max(bottom + dy, top + CELL) : bottom,
  ];
}
