// An operator makes and revokes keys. A new one is shown once, and kept nowhere on the page after.

import { api, post } from "./api.js";
import { $, say } from "./dom.js";

const changed = () => window.htmx.trigger(document.body, "keys-changed");

$("#new-key").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const button = $("button", form);
  button.disabled = true;
  try {
    const made = await post("/keys", { name: form.elements.name.value });
    $("#made-key").textContent = made.key;
    $("#made").hidden = false;
    form.reset();
    changed();
  } catch (error) {
    say(error.message);
  }
  button.disabled = false;
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-revoke]");
  if (!button) return;
  if (!confirm(`Revoke the key "${button.dataset.name}"? It opens nothing any more; this can't be undone.`)) return;
  button.disabled = true;
  try {
    await api("DELETE", `/keys/${encodeURIComponent(button.dataset.revoke)}`);
    say("Revoked.");
  } catch (error) {
    say(error.message);
  }
  changed();
});
