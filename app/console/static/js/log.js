// A log of any length: only the lines in view are elements, older ones are fetched when they come
// into view, and the server searches.

import { get } from "./api.js";
import { later, make } from "./dom.js";

const ROW = 20; // pixels, as in request.css
const PAGE = 2000;
const EXTRA = 10; // rows above and below the view

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export class Log {
  constructor(view, base, first, { search, levels, follow, count }) {
    Object.assign(this, { view, base, search, levels, follow, count });
    this.space = make("div", { className: "log-space" });
    this.filter = { search: "", levels: [] };
    this.take(first);
    view.replaceChildren(this.space);
    view.addEventListener("scroll", () => this.scrolled(), { passive: true });
    new ResizeObserver(() => this.render()).observe(view);
    const refilter = later(250, () => this.refilter());
    search.addEventListener("input", refilter);
    levels.addEventListener("change", refilter);
    follow.addEventListener("change", () => this.render());
    this.render();
  }

  take(page) {
    this.lines = page.lines;
    this.total = page.total;
    this.newest = page.newest;
  }

  get hasOlder() {
    return this.lines.length < this.total;
  }

  query(more) {
    const wanted = new URLSearchParams({ limit: PAGE, ...more });
    if (this.filter.search) wanted.set("search", this.filter.search);
    for (const level of this.filter.levels) wanted.append("level", level);
    return `${this.base}/log?${wanted}`;
  }

  async refilter() {
    this.filter = { search: this.search.value.trim(), levels: this.levels.value.split(",").filter(Boolean) };
    const asked = this.filter;
    const page = await get(this.query({}));
    if (asked !== this.filter) return;
    this.take(page);
    this.render(true);
  }

  matches(line) {
    const { search, levels } = this.filter;
    if (levels.length && !levels.includes(line.level)) return false;
    return !search || line.message.toLowerCase().includes(search.toLowerCase());
  }

  append(lines) {
    const fresh = lines.filter((line) => line.id > this.newest);
    if (!fresh.length) return;
    this.newest = fresh.at(-1).id;
    const wanted = fresh.filter((line) => this.matches(line));
    this.lines.push(...wanted);
    this.total += wanted.length;
    this.render();
  }

  async scrolled() {
    const atEnd = this.view.scrollTop + this.view.clientHeight >= this.view.scrollHeight - ROW * 2;
    if (!this.placing) this.follow.checked = atEnd;
    this.placing = false;
    this.render();
    if (this.view.scrollTop > ROW * 40 || !this.hasOlder || this.loading) return;
    this.loading = true;
    const before = this.lines[0]?.id;
    const page = await get(this.query({ before })).finally(() => (this.loading = false));
    if (this.lines[0]?.id !== before) return;
    this.lines = [...page.lines, ...this.lines];
    this.place(this.view.scrollTop + page.lines.length * ROW);
    this.render();
  }

  place(top) {
    this.space.style.height = `${this.lines.length * ROW}px`;
    if (Math.abs(this.view.scrollTop - top) < 1) return;
    this.placing = true;
    this.view.scrollTop = top;
  }

  render(fromEnd = false) {
    this.space.style.height = `${this.lines.length * ROW}px`;
    this.count.textContent = `${this.total.toLocaleString()} ${this.total === 1 ? "line" : "lines"}`;
    if (this.follow.checked || fromEnd) this.place(Math.max(0, this.lines.length * ROW - this.view.clientHeight));
    if (!this.lines.length) {
      this.space.replaceChildren(make("p", { className: "none" }, this.filter.search || this.filter.levels.length ? "No line matches." : "No lines yet."));
      return;
    }
    const first = Math.max(0, Math.floor(this.view.scrollTop / ROW) - EXTRA);
    const last = Math.min(this.lines.length, first + Math.ceil(this.view.clientHeight / ROW) + 2 * EXTRA);
    this.space.replaceChildren(...this.lines.slice(first, last).map((line, at) => this.row(line, first + at)));
  }

  row(line, at) {
    const row = make(
      "div",
      { className: `log-line ${line.level}` },
      make("time", {}, clock.format(line.ts * 1000)),
      make("span", { className: "text" }, ...this.marked(line.message)),
    );
    row.style.top = `${at * ROW}px`;
    return row;
  }

  marked(text) {
    const { search } = this.filter;
    const at = search ? text.toLowerCase().indexOf(search.toLowerCase()) : -1;
    if (at < 0) return [text];
    return [text.slice(0, at), make("mark", {}, text.slice(at, at + search.length)), text.slice(at + search.length)];
  }
}
