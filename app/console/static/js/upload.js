// An upload in parts, through the routes that fal's clients use. A part that fails is sent again;
// what was sent is remembered, so the same file goes on where it stopped, also after a reload.

import { post } from "./api.js";

const PART = 8 << 20;
const PATIENCE = [1000, 2000, 5000, 10000, 20000, 30000]; // milliseconds before each next try
const KEPT_FOR = 20 * 3600 * 1000; // the service's own links last for a day

export class Upload {
  constructor(blob, name, { mark, onProgress = () => {} }) {
    Object.assign(this, { blob, name, onProgress });
    this.mark = `reelsmith-upload:${mark}:${blob.size}`;
    this.paused = false;
    this.resume = () => {};
  }

  pause(paused) {
    this.paused = paused;
    if (paused) this.abort?.abort();
    else this.resume();
  }

  // The URL of the stored file.
  async run() {
    const known = this.remembered() ?? (await this.begin());
    const count = Math.max(1, Math.ceil(this.blob.size / PART));
    for (let part = 1; part <= count; part += 1) {
      if (known.etags[part]) continue;
      this.onProgress({ sent: (part - 1) * PART, state: "sending" });
      known.etags[part] = await this.sendPart(known.upload_url, part);
      this.remember(known);
    }
    const parts = Object.entries(known.etags).map(([partNumber, etag]) => ({ partNumber: Number(partNumber), etag }));
    await this.patiently(() => post(`${known.upload_url}/complete`, { parts }));
    localStorage.removeItem(this.mark);
    this.onProgress({ sent: this.blob.size, state: "done" });
    return known.file_url;
  }

  async begin() {
    const file = { file_name: this.name, content_type: this.blob.type || "application/octet-stream" };
    const begun = await post("/storage/upload/initiate-multipart", file);
    return { ...begun, etags: {}, at: Date.now() };
  }

  async sendPart(url, part) {
    const body = this.blob.slice((part - 1) * PART, part * PART);
    return this.patiently(async (signal) => {
      const reply = await fetch(`${url}/${part}`, { method: "PUT", body, signal });
      if (reply.status === 403) localStorage.removeItem(this.mark);
      if (!reply.ok) {
        const found = await reply.json().catch(() => ({}));
        const error = new Error(found.detail ?? `The service answered ${reply.status}.`);
        error.final = reply.status < 500 && reply.status !== 429 && reply.status !== 408;
        throw error;
      }
      return (await reply.json()).etag;
    });
  }

  async patiently(send) {
    for (let tries = 0; ; tries += 1) {
      if (this.paused) await new Promise((resolve) => (this.resume = resolve));
      this.abort = new AbortController();
      try {
        return await send(this.abort.signal);
      } catch (error) {
        if (this.paused) {
          tries = -1;
          continue;
        }
        if (error.final || (error.status >= 400 && error.status < 500) || tries >= PATIENCE.length) throw error;
        this.onProgress({ state: "waiting", error: error.message });
        await until(PATIENCE[tries]);
      }
    }
  }

  remembered() {
    try {
      const known = JSON.parse(localStorage.getItem(this.mark));
      return known && Date.now() - known.at < KEPT_FOR ? known : null;
    } catch {
      return null;
    }
  }

  remember(known) {
    try {
      localStorage.setItem(this.mark, JSON.stringify(known));
    } catch {
      // A full or forbidden store: then a reload begins anew.
    }
  }
}

// A pause that ends early when the network is back.
function until(milliseconds) {
  return new Promise((resolve) => {
    const timer = setTimeout(done, milliseconds);
    function done() {
      clearTimeout(timer);
      removeEventListener("online", done);
      resolve();
    }
    addEventListener("online", done);
  });
}

// One small file, such as a mask for a preview.
export async function uploadFile(file, onProgress) {
  const upload = new Upload(file, file.name, { mark: `${file.name}:${file.lastModified}`, onProgress });
  return upload.run();
}

