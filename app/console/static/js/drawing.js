// What an endpoint conditions on, drawn over a frame of one's own clip. One class per kind of
// condition (trainer/spec.py); each reads and writes the form's own fields.

import { Frames } from "./frames.js";
import { Mask } from "./mask.js";
import { Rectangle } from "./rectangle.js";
import { Ruler } from "./ruler.js";

const KINDS = {
  keep_rectangle: (element, form) => new Rectangle(element, form, new Frames(element, form)),
  sample_mask: (element, form) => new Mask(element, form, new Frames(element, form)),
  suffix: (element, form) => new Ruler(element, form, "end"),
  prefix: (element, form) => new Ruler(element, form, "start"),
};

export function drawingOf(element, form) {
  return KINDS[element.dataset.drawing]?.(element, form) ?? null;
}
