// The public API, asked as the person who looks: the browser adds the session by itself.

export class Refused extends Error {
  constructor(status, details, message) {
    super(message);
    this.status = status;
    this.details = details; // fal's list of {loc, msg}, or empty
  }
}

export async function api(method, path, body, { headers = {}, signal } = {}) {
  const reply = await fetch(path, {
    method,
    signal,
    headers: body === undefined ? headers : { "content-type": "application/json", ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const found = await reply.json().catch(() => ({}));
  if (reply.ok) return found;
  const details = Array.isArray(found.detail) ? found.detail : [];
  const text = typeof found.detail === "string" ? found.detail : details[0]?.msg;
  throw new Refused(reply.status, details, text ?? `The service answered ${reply.status}.`);
}

export const get = (path, options) => api("GET", path, undefined, options);
export const post = (path, body = {}, options) => api("POST", path, body, options);
