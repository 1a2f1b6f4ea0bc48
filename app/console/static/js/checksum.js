// Checksums from the worker, as promises.

let worker;
let number = 0;

export function checksum(file, onBytes = () => {}) {
  worker ??= new Worker(new URL("./checksum-worker.js", import.meta.url), { type: "module" });
  const id = (number += 1);
  return new Promise((resolve, reject) => {
    const listen = ({ data }) => {
      if (data.id !== id) return;
      if (data.bytes !== undefined) return onBytes(data.bytes);
      worker.removeEventListener("message", listen);
      if (data.error) reject(new Error(data.error));
      else resolve(data.crc);
    };
    worker.addEventListener("message", listen);
    worker.postMessage({ id, file });
  });
}
