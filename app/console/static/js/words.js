// Numbers as people read them; the same forms as on the server (app/console/shown.py).

export function size(bytes) {
  if (bytes == null) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${units[unit]}`;
}

export function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 10) return `${Number(seconds.toPrecision(2))} s`;
  if (seconds < 60) return `${seconds.toFixed(0)} s`;
  const minutes = Math.floor(Math.round(seconds) / 60);
  const rest = String(Math.round(seconds) % 60).padStart(2, "0");
  if (minutes < 60) return `${minutes} min ${rest} s`;
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

// With thin spaces between thousands, as on the server.
export const number = (value) => (value == null ? "–" : value.toLocaleString("en").replaceAll(",", "\u202f"));

export function usd(value) {
  if (value == null) return "–";
  return value === 0 || value >= 0.1 ? `$${value.toFixed(2)}` : `$${Number(value.toPrecision(3))}`;
}

export const label = (name) => {
  const text = name.replaceAll("_", " ").replace(/\burl\b/, "URL").replace(/\bstg\b/, "STG");
  return text[0].toUpperCase() + text.slice(1);
};
