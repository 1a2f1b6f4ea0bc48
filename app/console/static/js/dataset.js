// The dataset: dropped or chosen files become one zip, and the zip is uploaded.

import { checksum } from "./checksum.js";
import { $, make } from "./dom.js";
import { Upload } from "./upload.js";
import { size } from "./words.js";
import { zipOf } from "./zip.js";

const USED = /\.(mp4|mov|avi|mkv|webm|png|jpe?g|txt)$/i;
const MOVING = /\.(mp4|mov|avi|mkv|webm)$/i;
const SHOWN = 200;

export const isClip = (name) => MOVING.test(name);

export class Dataset extends EventTarget {
  constructor() {
    super();
    this.url = "";
    this.files = []; // [{name, file}] of what was dropped, for drawings
    this.connect();
  }

  connect() {
    const drop = $("#drop");
    for (const kind of ["dragenter", "dragover"]) {
      drop.addEventListener(kind, (event) => {
        event.preventDefault();
        drop.classList.add("over");
      });
    }
    drop.addEventListener("dragleave", () => drop.classList.remove("over"));
    drop.addEventListener("drop", async (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      this.take(await filesOf(event.dataTransfer));
    });
    for (const [button, input] of [["#pick-folder", "#folder-input"], ["#pick-zip", "#zip-input"]]) {
      $(button).addEventListener("click", () => $(input).click());
      $(input).addEventListener("change", (event) => {
        const files = [...event.target.files];
        this.take(files.map((file) => ({ name: withoutFolder(file.webkitRelativePath) || file.name, file })));
      });
    }
    $("#upload-pause").addEventListener("click", (event) => {
      const paused = !this.upload?.paused;
      this.upload?.pause(paused);
      event.target.textContent = paused ? "Go on" : "Pause";
      this.note(paused ? "Paused." : "");
    });
    $("#f-archive").addEventListener("input", (event) => this.settle(event.target.value.trim()));
  }

  async take(found) {
    const used = found.filter(({ name }) => USED.test(name) && !name.split("/").some((part) => part.startsWith(".")));
    const zip = found.length === 1 && /\.zip$/i.test(found[0].name) ? found[0].file : null;
    this.upload?.pause(true);
    this.files = zip ? [] : used.sort((a, b) => (a.name < b.name ? -1 : 1));
    this.list();
    this.fail("");
    this.settle("");
    if (!zip && !this.files.some(({ name }) => !/\.txt$/i.test(name))) {
      this.fail("There is no clip in it: .mp4, .mov, .avi, .mkv and .webm are clips, .png and .jpg images.");
      return;
    }
    $("#upload").hidden = false;
    $("#upload-pause").hidden = false;
    $("#upload-pause").textContent = "Pause";
    const run = (this.run = {});
    try {
      const blob = zip ?? (await this.pack());
      if (run !== this.run) return;
      const name = zip?.name ?? "clips.zip";
      $("#upload-name").textContent = name;
      this.upload = new Upload(blob, name, { mark: this.mark(zip), onProgress: (now) => this.progress(now, blob.size) });
      const url = await this.upload.run();
      if (run === this.run) this.settle(url);
    } catch (error) {
      if (run === this.run) this.fail(`The upload failed: ${error.message}`);
    }
  }

  pack() {
    const total = this.files.reduce((sum, { file }) => sum + file.size, 0);
    $("#upload-name").textContent = `Packing ${this.files.length} files`;
    return zipOf(this.files, {
      checksum,
      onProgress: (bytes) => {
        $("#upload-bar").value = total ? (100 * bytes) / total : 0;
        $("#upload-state").textContent = `${size(bytes)} of ${size(total)}`;
      },
    });
  }

  // Names this content, so that the same files go on where an upload stopped.
  mark(zip) {
    const files = zip ? [{ name: zip.name, file: zip }] : this.files;
    return files.map(({ name, file }) => `${name}|${file.size}|${file.lastModified}`).join("\n").slice(0, 4000);
  }

  progress({ sent, state, error }, total) {
    if (sent !== undefined) {
      $("#upload-bar").value = total ? (100 * Math.min(sent, total)) / total : 100;
      $("#upload-state").textContent = `${size(Math.min(sent, total))} of ${size(total)}`;
    }
    if (state === "waiting") this.note(`${error} Trying again.`);
    if (state === "sending") this.note("");
    if (state === "done") {
      this.note("Uploaded.");
      $("#upload-pause").hidden = true;
    }
  }

  note(text) {
    $("#upload-note").textContent = text;
  }

  fail(text) {
    const problem = $("#dataset .problem");
    problem.hidden = !text;
    problem.textContent = text;
  }

  settle(url) {
    this.url = url;
    this.dispatchEvent(new Event("change"));
  }

  list() {
    const list = $("#clips");
    list.hidden = !this.files.length;
    list.replaceChildren(
      ...this.files.slice(0, SHOWN).map(({ name, file }) => make("li", {}, make("span", {}, name), make("span", { className: "fine num" }, size(file.size)))),
    );
    if (this.files.length > SHOWN) list.append(make("li", {}, make("span", {}, `and ${this.files.length - SHOWN} more`)));
  }
}

// Everything below what was dropped, with paths inside of the dropped folder.
async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ name: file.name, file }));
  const found = [];
  const top = entries.length === 1 && entries[0].isDirectory ? `${entries[0].fullPath}/` : "/";
  for (const entry of entries) await walk(entry, top, found);
  return found;
}

async function walk(entry, top, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    found.push({ name: entry.fullPath.slice(top.length), file });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const page = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!page.length) return;
    for (const one of page) await walk(one, top, found);
  }
}

const withoutFolder = (path) => path?.split("/").slice(1).join("/");
