// The kept end of a clip on a timeline. Dragging or arrow keys set how many frames are kept.

import { make } from "./dom.js";

const STEP = 8; // frames of a latent frame

export class Ruler {
  constructor(element, form, end) {
    Object.assign(this, { form, end });
    this.kept = make("span", { className: "kept" });
    this.made = make("span", { className: "made" });
    this.bar = make("div", { className: "ruler" }, ...(end === "end" ? [this.made, this.kept] : [this.kept, this.made]));
    this.bar.tabIndex = 0;
    this.bar.setAttribute("role", "slider");
    this.bar.ariaLabel = end === "end" ? "Last frames that are kept" : "First frames that are kept";
    this.note = make("p", { className: "fine" });
    element.append(this.bar, this.note);
    this.bar.addEventListener("pointerdown", (event) => this.grab(event));
    this.bar.addEventListener("keydown", (event) => this.key(event));
    // A prefix covers the clip's very first frame, which is a latent frame by itself.
    this.first = (form.example.conditioning_frames ?? STEP) % STEP;
    this.update();
  }

  get total() {
    return Math.max(9, Math.floor(((this.form.valueOf("number_of_frames") || 89) - 1) / 8) * 8 + 1);
  }

  get count() {
    return this.form.valueOf("conditioning_frames") || STEP;
  }

  put(frames) {
    const least = this.first || STEP;
    const whole = this.first + Math.round((frames - this.first) / STEP) * STEP;
    this.form.write("conditioning_frames", Math.max(least, Math.min(whole, this.total - 1)));
  }

  grab(down) {
    down.preventDefault();
    this.bar.focus();
    this.bar.setPointerCapture(down.pointerId);
    const drag = (event) => {
      const box = this.bar.getBoundingClientRect();
      const share = Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
      this.put((this.end === "end" ? 1 - share : share) * this.total);
    };
    drag(down);
    this.bar.addEventListener("pointermove", drag);
    this.bar.addEventListener("pointerup", () => this.bar.removeEventListener("pointermove", drag), { once: true });
  }

  key(event) {
    const more = this.end === "end" ? "ArrowLeft" : "ArrowRight";
    const less = this.end === "end" ? "ArrowRight" : "ArrowLeft";
    const step = { [more]: STEP, ArrowUp: STEP, [less]: -STEP, ArrowDown: -STEP }[event.key];
    if (!step) return;
    event.preventDefault();
    this.put(this.count + step);
  }

  update() {
    const { total, count } = this;
    const rate = this.form.valueOf("frame_rate") || 24;
    this.kept.style.flex = `${Math.min(count, total)} 0 0`;
    this.made.style.flex = `${Math.max(total - count, 0)} 0 0`;
    // A narrow part has no room for words.
    this.kept.textContent = count / total > 0.16 ? `${count} kept` : count;
    this.made.textContent = `${Math.max(total - count, 0)} made`;
    for (const [name, value] of Object.entries({ valuemin: this.first || STEP, valuemax: total - 1, valuenow: count })) this.bar.setAttribute(`aria-${name}`, value);
    this.bar.setAttribute("aria-valuetext", `${count} of ${total} frames`);
    this.note.textContent = `${(count / rate).toFixed(2)} s of ${(total / rate).toFixed(2)} s are given; the model makes what comes ${this.end === "end" ? "before" : "after"}.`;
  }
}
