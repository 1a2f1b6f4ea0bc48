// The form page: reads the generated fields, asks for the estimate, submits.

import { post } from "./api.js";
import { Dataset } from "./dataset.js";
import { $, $$, dataOf, later, say } from "./dom.js";
import { drawingOf } from "./drawing.js";
import { showEstimate } from "./estimate.js";
import { addEntry, fieldsIn, read, readAll, showErrors, write, writeAll } from "./fields.js";
import { showSnaps } from "./snap.js";
import { SNIPPETS } from "./snippets.js";
import { uploadFile } from "./upload.js";

const page = dataOf("form-data");
const form = $("#form");
const dataset = page.archive ? new Dataset() : null;
const fieldOf = (name) => $(`[data-field="${name}"]`, form);
const valueOf = (name) => (fieldOf(name) ? read(fieldOf(name)) : undefined);
let snippet = "curl";

function body() {
  const found = readAll(form);
  return page.archive && dataset.url ? { [page.archive]: dataset.url, ...found } : found;
}

// Frames per second of a count of frames: previews and clips have their own.
const rateOf = (name) => valueOf(name.startsWith("validation_") ? "validation_frame_rate" : "frame_rate");

const ask = later(300, async () => {
  const given = body();
  if (!$("#estimate")) return;
  try {
    const found = await post(`/${page.path}/estimate`, given);
    showErrors(form, []);
    showEstimate(found);
  } catch (error) {
    showEstimate(null);
    // What is not filled in yet is no mistake yet.
    showErrors(form, error.details?.filter(({ type }) => type !== "missing") ?? []);
  }
});

function changed() {
  showSnaps(form, rateOf);
  $("#snippet").textContent = SNIPPETS[snippet]({
    origin: location.origin,
    endpoint: page.endpoint + (page.purpose === "check" ? "/check" : ""),
    body: page.archive && !dataset.url ? { [page.archive]: "https://…/clips.zip", ...body() } : body(),
    key: page.needs_key,
  });
  drawing?.update();
  ask();
}

async function submit(suffix, button) {
  const problem = $("#form-problem");
  problem.hidden = true;
  if (page.archive && !dataset.url) {
    problem.textContent = dataset.files.length ? "The upload is not finished yet." : "A dataset is missing: drop a folder or a zip, or give a URL.";
    problem.hidden = false;
    $("#dataset").scrollIntoView({ block: "center" });
    return;
  }
  button.disabled = true;
  // Sent twice, by a nervous hand or a bad line, it is one request.
  submit.key ??= crypto.randomUUID?.() ?? String(Math.random()).slice(2);
  try {
    const made = await post(`/${page.path}${suffix}`, body(), { headers: { "idempotency-key": submit.key } });
    location.assign(`/console/requests/${made.request_id}`);
  } catch (error) {
    submit.key = null;
    button.disabled = false;
    const elsewhere = showErrors(form, error.details ?? []);
    problem.textContent = elsewhere.length ? elsewhere.map(({ msg, loc }) => `${loc.slice(1).join(" ")}: ${msg}`).join(" ") : error.details?.length ? "Some fields need a change." : error.message;
    problem.hidden = false;
    $('[aria-invalid="true"]', form)?.focus();
  }
}

function connect() {
  form.addEventListener("input", changed);
  form.addEventListener("written", changed);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit(page.purpose === "check" ? "/check" : "", $("#submit"));
  });
  $("#check")?.addEventListener("click", (event) => submit("/check", event.target));
  for (const field of $$(".entries", form)) {
    $("[data-add]", field).addEventListener("click", () => {
      $("input, textarea", addEntry(field)).focus();
      changed();
    });
  }
  for (const button of $$("[data-snippet]")) {
    button.addEventListener("click", () => {
      snippet = button.dataset.snippet;
      for (const one of $$("[data-snippet]")) one.setAttribute("aria-pressed", one === button);
      changed();
    });
  }
  for (const button of $$("[data-start]")) button.addEventListener("click", () => begin(button.dataset.start));
  form.addEventListener("click", (event) => {
    const button = event.target.closest("[data-upload]");
    if (button) pickFor(button.closest("[data-field]"));
  });
  $("#lora")?.addEventListener("change", (event) => putLora(event.target.value));
  dataset?.addEventListener("change", changed);
}

// A starting configuration: the defaults, and its values where this form has such fields.
function begin(name) {
  const values = page.starts[page.start_names.indexOf(name)];
  for (const field of fieldsIn(form)) {
    const own = field.dataset.field in values;
    if (!own && !("default" in field.dataset && ["number_of_steps", "rank", "learning_rate", "number_of_frames", "resolution", "validation_resolution", "validation_number_of_frames"].includes(field.dataset.field))) continue;
    write(field, own ? values[field.dataset.field] : JSON.parse(field.dataset.default));
  }
  say("Filled in. Every value can be changed.");
}

// A file of one's own for a field that takes a URL.
function pickFor(field) {
  const input = Object.assign(document.createElement("input"), { type: "file" });
  input.addEventListener("change", async () => {
    const bar = $("progress", field);
    const [file] = input.files;
    bar.hidden = false;
    try {
      const url = await uploadFile(file, ({ sent }) => sent !== undefined && (bar.value = (100 * sent) / file.size));
      write(field, url);
      drawing?.addSource?.(file.name, file);
    } catch (error) {
      showErrors(form, []);
      const line = $(":scope > .error", field);
      line.textContent = error.message;
      line.hidden = false;
    }
    bar.hidden = true;
  });
  input.click();
}

function putLora(url) {
  const list = fieldOf("loras");
  if (!list) {
    const single = fieldOf("lora_url") ?? fieldOf("lora");
    if (single && url) write(single, url);
    return;
  }
  const entry = $(".entry", list) ?? addEntry(list);
  const path = $('[data-field="path"], [data-field="url"]', entry);
  if (path && url) write(path, url);
}

const drawing = $("#drawing")
  ? drawingOf($("#drawing"), {
      dataset,
      valueOf,
      write: (name, value) => fieldOf(name) && write(fieldOf(name), value),
      frameSize: () => page.frame_sizes[`${valueOf("resolution")}/${valueOf("aspect_ratio")}`],
      example: page.example,
    })
  : null;

if (page.given && Object.keys(page.given).length) {
  writeAll(form, page.given);
  if (page.archive && page.given[page.archive]) {
    $("#f-archive").value = page.given[page.archive];
    dataset.settle(page.given[page.archive]);
  }
}
connect();
if ($("#lora")?.value) putLora($("#lora").value);
changed();
document.documentElement.dataset.ready = "true";
