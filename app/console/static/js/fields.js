// Reading and writing the generated fields. What each kind of field holds is JSON, as the API has it.

import { $, $$ } from "./dom.js";

const control = (field) => $("input, select, textarea", field);

const READ = {
  text: (field) => control(field).value,
  lines: (field) => control(field).value,
  url: (field) => control(field).value.trim(),
  choice(field) {
    const { value } = control(field);
    return typeof defaultOf(field) === "number" ? Number(value) : value;
  },
  tristate: (field) => JSON.parse(control(field).value),
  yesno: (field) => control(field).checked,
  integer: (field) => numberOf(control(field)),
  number: (field) => numberOf(control(field)),
  corner: (field) => $$("input", field).map(numberOf),
  entries: (field) => $$(".entry", field).map((entry) => readAll(entry)),
};

const WRITE = {
  yesno: (field, value) => (control(field).checked = Boolean(value)),
  tristate: (field, value) => (control(field).value = JSON.stringify(value)),
  corner: (field, value) => $$("input", field).forEach((input, at) => (input.value = value?.[at] ?? "")),
  entries(field, value) {
    $(".entry-list", field).replaceChildren();
    for (const one of value ?? []) writeAll(addEntry(field), one);
  },
};

const defaultFor = (field) => (field.dataset.kind === "entries" ? [] : defaultOf(field) ?? (field.dataset.kind === "tristate" ? null : ""));

export const defaultOf = (field) => JSON.parse(field.dataset.default ?? "null");

function numberOf(input) {
  return input.value === "" ? null : Number(input.value);
}

// Fields directly in `root`, not those of an entry in it.
export function fieldsIn(root) {
  return $$("[data-field]", root).filter((field) => {
    const outer = field.parentElement.closest(".entry");
    return field.dataset.kind !== "archive" && (outer === null || outer === root || root.contains(outer) === false);
  });
}

export function read(field) {
  return READ[field.dataset.kind](field);
}

export function write(field, value) {
  const put = WRITE[field.dataset.kind];
  if (put) put(field, value);
  else control(field).value = value ?? "";
  field.dispatchEvent(new Event("written", { bubbles: true }));
}

// What differs from the defaults, or must be said.
export function readAll(root) {
  const found = {};
  for (const field of fieldsIn(root)) {
    const value = read(field);
    const empty = value === "" || value === null || (Array.isArray(value) && value.every((one) => one === null));
    // An empty text or list may be meant: where the default is another, it is said.
    const said = "required" in field.dataset ? !empty : JSON.stringify(value) !== JSON.stringify(defaultFor(field));
    if (said && !(empty && field.dataset.kind === "integer")) found[field.dataset.field] = value;
  }
  return found;
}

export function writeAll(root, values) {
  for (const field of fieldsIn(root)) {
    if (field.dataset.field in values) write(field, values[field.dataset.field]);
  }
}

let entries = 0;

export function addEntry(field) {
  const part = $("template", field).content.cloneNode(true);
  const number = (entries += 1);
  for (const element of $$("[id], [for], [aria-describedby]", part)) {
    for (const name of ["id", "for", "aria-describedby"]) {
      if (element.hasAttribute(name)) element.setAttribute(name, element.getAttribute(name).replace("ENTRY", number));
    }
  }
  const entry = part.firstElementChild;
  entry.setAttribute("aria-label", `Number ${$$(".entry", field).length + 1}`);
  $("[data-remove]", entry).addEventListener("click", () => {
    entry.remove();
    counted(field);
    field.dispatchEvent(new Event("written", { bubbles: true }));
  });
  $(".entry-list", field).append(entry);
  counted(field);
  return entry;
}

function counted(field) {
  $("[data-add]", field).disabled = $$(".entry", field).length >= Number(field.dataset.max);
}

// The errors of a 422, each at its field. Returns those that no field of the form has.
export function showErrors(root, details) {
  for (const line of $$(".field > .error", root)) {
    line.hidden = true;
    control(line.parentElement)?.removeAttribute("aria-invalid");
  }
  return details.filter(({ loc, msg }) => {
    const field = fieldAt(root, loc.slice(1));
    const line = field && $(":scope > .error", field);
    if (!line) return true;
    line.textContent = msg;
    line.hidden = false;
    control(field)?.setAttribute("aria-invalid", "true");
    const folded = field.closest("details");
    if (folded) folded.open = true;
    return false;
  });
}

function fieldAt(root, [name, index, ...rest]) {
  const field = $(`[data-field="${CSS.escape(String(name))}"]`, root);
  if (!field || field.dataset.kind === "archive") return null;
  if (field.dataset.kind !== "entries" || index === undefined) return field;
  const entry = $$(".entry", field)[index];
  return entry && rest.length ? fieldAt(entry, rest) : field;
}
