// What every page has: times in the reader's clock, the theme, copying, small buttons.

import { post } from "./api.js";
import { $, $$, say } from "./dom.js";

const clock = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

function localise(root) {
  for (const time of $$("time[datetime]", root)) {
    time.textContent = clock.format(new Date(time.dateTime));
    time.title = time.dateTime;
  }
}

async function copy(text) {
  await navigator.clipboard.writeText(text);
  say("Copied.");
}

const actions = {
  copy: (button) => copy(button.dataset.copy),
  play(button) {
    const video = $("video", button);
    if (video.paused) video.play();
    else video.pause();
    button.setAttribute("aria-pressed", String(!video.paused));
  },
  copyFrom: (button) => copy($(button.dataset.copyFrom).textContent),
  async redeliver(button) {
    button.disabled = true;
    try {
      await post(`/webhooks/deliveries/${button.dataset.redeliver}/redeliver`);
      say("It is sent again within a second or two.");
    } catch (error) {
      say(error.message);
    }
    window.htmx.trigger(document.body, "deliveries-changed");
  },
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  for (const [name, act] of Object.entries(actions)) {
    if (button && (name in button.dataset || button.classList.contains(name))) act(button);
  }
});

$("#theme")?.addEventListener("change", async (event) => {
  const theme = event.target.value;
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  document.dispatchEvent(new Event("theme-changed"));
  await fetch("/console/theme", { method: "POST", body: new URLSearchParams({ theme }) });
});

// Two to four rows of the history may be compared.
document.addEventListener("change", (event) => {
  if (!event.target.matches('input[name="id"][form="compare"]')) return;
  const picked = $$('input[name="id"][form="compare"]:checked');
  if (picked.length > 4) event.target.checked = false;
  const button = $("#compare-button");
  if (!button) return;
  button.disabled = picked.length < 2;
  button.textContent = picked.length < 2 ? "Compare" : `Compare ${Math.min(picked.length, 4)}`;
});

// What someone has opened stays open when a part is replaced.
let opened = new Set();
document.addEventListener("htmx:beforeSwap", () => {
  opened = new Set($$("details[open][id]").map((details) => details.id));
});
document.addEventListener("htmx:afterSwap", (event) => {
  for (const details of $$("details[id]", event.target)) details.open = opened.has(details.id);
  localise(event.target);
});

// On a narrow screen the navigation scrolls.
const current = $("nav [aria-current]");
if (current && matchMedia("(max-width: 760px)").matches) {
  const bar = current.closest("nav");
  bar.scrollLeft = current.offsetLeft - (bar.clientWidth - current.offsetWidth) / 2;
}

localise(document);
