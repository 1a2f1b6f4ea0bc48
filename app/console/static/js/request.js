// The page of one request: what the server made, kept up to date by one stream of events.

import { AGAIN_MS, api, patiently } from "./api.js";
import { Chart } from "./chart.js";
import { $, $$, dataOf, say } from "./dom.js";
import { Log } from "./log.js";
import { Previews } from "./previews.js";
import { duration, number } from "./words.js";

const page = dataOf("live");
const log = new Log($("#log"), page.base, page.log, {
  search: $("#log-search"),
  levels: $("#log-level"),
  follow: $("#log-follow"),
  count: $("#log-count"),
});
const chart = $("#chart") ? new Chart($("#chart"), page.base, { lastStep: page.steps }) : null;
const previews = $("#previews") ? new Previews($("#previews"), $("#play-all"), page.previews) : null;

function chartControls() {
  for (const button of $$("[data-curve]")) {
    button.addEventListener("click", () => {
      for (const one of $$("[data-curve]")) one.setAttribute("aria-pressed", one === button);
      chart.set({ field: button.dataset.curve });
    });
  }
  for (const button of $$("[data-move]")) button.addEventListener("click", () => chart.move(button.dataset.move));
  $("#smoothing").addEventListener("input", (event) => {
    chart.smoothing = Number(event.target.value);
    chart.draw();
  });
  $("#log-scale").addEventListener("change", (event) => chart.set({ log: event.target.checked }));
}

// Numbers that change every second are written in place; everything else the server makes anew.
function showProgress({ progress }) {
  const put = (id, text) => {
    const element = document.getElementById(id);
    if (element && text != null) element.textContent = text;
  };
  if (!progress) return;
  const done = progress.step ?? progress.done;
  const total = progress.of ?? progress.total;
  const bar = $("#now-bar");
  if (bar && total) bar.value = Math.min(100, (100 * done) / total);
  if (progress.step != null) $("#now-numbers").hidden = false;
  put("now-step", progress.step == null ? null : number(progress.step));
  put("now-of", progress.of == null ? null : number(progress.of));
  put("now-loss", progress.loss?.toFixed(4));
  put("now-lr", progress.lr?.toExponential(2));
  put("now-time", progress.step_time_s == null ? null : duration(progress.step_time_s));
  put("now-eta", progress.eta_s == null ? null : duration(progress.eta_s));
}

// A checkpoint and previews can be asked for between the first step and the last.
function showWishes({ status, stage, progress }) {
  const ended = progress?.step != null && progress.step === progress.of;
  const now = status === "IN_PROGRESS" && stage === "train" && !ended;
  for (const button of $$("[data-wish]")) button.hidden = !now;
}

function waits(button, yes) {
  button.disabled = yes;
  button.textContent = yes ? button.dataset.doing : button.dataset.title;
}

function granted({ data }) {
  const button = $(`[data-wish=${data.wish}]`);
  if (button) waits(button, false);
  say(`${data.wish === "save" ? "Saved" : "Sampled"} after step ${number(data.step)}.`);
}

let last = "";
function changed(change) {
  const progress = change.progress ?? {};
  const stages = change.events.filter(({ kind }) => kind === "stage" || kind === "checkpoint").length;
  const now = `${change.status} ${change.stage} ${progress.stage} ${change.queue_position}`;
  if (now !== last || stages) window.htmx.trigger(document.body, "request-changed");
  last = now;
  if (change.status === "COMPLETED") $("#cancel")?.remove();
  for (const event of change.events) if (event.kind === "granted") granted(event);
  showWishes(change);
  showProgress(change);
}

function follow(after) {
  const source = new EventSource(`${page.base}/live?after=${after}&log_after=${page.log.newest}`);
  source.onmessage = (event) => {
    const change = JSON.parse(event.data);
    log.append(change.lines);
    chart?.append(change.events);
    previews?.take(change.events);
    changed(change);
    if (change.status === "COMPLETED") source.close();
  };
  // A gateway that is away comes back; the browser connects again and goes on where it was. Only
  // an answer that is no stream ends it: the session is over, or the request has expired.
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) {
      setTimeout(() => follow(after), 5000);
    }
  };
}

// A part of the page that met a gateway that was away. Nothing else may ever change again.
document.addEventListener("htmx:sendError", () => {
  setTimeout(() => window.htmx.trigger(document.body, "request-changed"), AGAIN_MS);
});

$("#cancel")?.addEventListener("click", async (event) => {
  event.target.disabled = true;
  event.target.textContent = "Cancelling";
  try {
    await api("PUT", page.cancel);
    say("It ends at its next safe moment.");
  } catch (error) {
    say(error.message);
  }
});

for (const button of $$("[data-wish]")) {
  button.addEventListener("click", async () => {
    waits(button, true);
    try {
      await api("PUT", `${page.base}/${button.dataset.wish}`);
      say("It is done after the current step.");
    } catch (error) {
      waits(button, false);
      say(error.message);
    }
  });
}

showWishes(page.now);
const columns = chart ? await patiently(() => chart.load()) : { after: 0 };
if (chart) chartControls();
const running = page.standing === "queued" || page.standing === "running";
if (running) follow(columns.after);
document.documentElement.dataset.ready = "true";
