// Price, time and memory of what is typed, as /estimate has them.

import { $ } from "./dom.js";
import { duration, size, usd } from "./words.js";

export function showEstimate(found) {
  const put = (name, text) => {
    const element = $(`#estimate [data-of="${name}"]`);
    if (element) element.textContent = text;
  };
  if (!found) {
    for (const name of ["price", "time", "memory", "tokens", "video"]) put(name, "–");
    put("price-note", "Known once the fields fit together.");
    return;
  }
  const { price, time, memory, tokens, video } = found;
  put("price", usd(price.usd));
  put("price-note", `${price.billable_units.toLocaleString()} units at ${usd(price.usd_per_unit)}, at fal; nothing is charged here.`);
  put("tokens", `${(tokens.video + tokens.audio).toLocaleString()}${video ? "" : " per sample"}`);
  if (video) put("video", `${video.width}×${video.height}, ${video.num_frames} frames, ${video.duration_seconds} s`);
  put("time", time.total_seconds == null ? (time.reason ?? "unknown") : `about ${duration(time.total_seconds)}`);
  const range = memory.least_bytes == null ? "" : `${size(memory.least_bytes)} at least, ${size(memory.full_speed_bytes)} for full speed. `;
  const measured = memory.measured_peak_bytes == null ? "" : `${size(memory.measured_peak_bytes)} measured. `;
  put("memory", `${range}${measured}` || (memory.reason ?? "unknown"));
}
