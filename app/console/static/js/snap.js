// What the service makes of a number, said while it is typed.

import { $ } from "./dom.js";
import { fieldsIn, read } from "./fields.js";

const CELL = 32; // pixels of a latent cell

const MAKES = {
  "8k+1": (count) => Math.max(1, Math.floor((count - 1) / 8) * 8 + 1),
};

export function showSnaps(form, rate) {
  for (const field of fieldsIn(form)) {
    const line = $(":scope > .snap", field);
    if (!line) continue;
    const text = snapOf(field, rate);
    line.hidden = !text;
    line.textContent = text;
  }
}

function snapOf(field, rate) {
  const value = read(field);
  if (field.dataset.snap && typeof value === "number" && value > 0) {
    const used = MAKES[field.dataset.snap](value);
    const seconds = rate(field.dataset.field);
    return `${used === value ? "" : `Becomes ${used}: `}${used} frames${seconds ? `, ${(used / seconds).toFixed(2)} s` : ""}`;
  }
  if (field.dataset.kind === "corner" && value.every((one) => one !== null)) {
    const snapped = value.map((one) => Math.floor(one / CELL) * CELL);
    return snapped.some((one, at) => one !== value[at]) ? `Becomes [${snapped.join(", ")}]: whole cells of ${CELL} pixels` : "";
  }
  return "";
}
