// The public API, asked as the person who looks: the browser adds the session by itself.

export class Refused extends Error {
  constructor(status, details, message) {
    super(message);
    this.status = status;
    this.details = details; // fal's list of {loc, msg}, or empty
  }
}

// Nobody answered: the gateway is being restarted, or the network is down.
export class Away extends Error {
  constructor() {
    super("The service can't be reached.");
  }
}

export const AGAIN_MS = 2000;

export async function api(method, path, body, { headers = {}, signal } = {}) {
  const reply = await fetch(path, {
    method,
    signal,
    headers: body === undefined ? headers : { "content-type": "application/json", ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
  }).catch((error) => {
    throw signal?.aborted ? error : new Away();
  });
  const found = await reply.json().catch(() => ({}));
  if (reply.ok) return found;
  const details = Array.isArray(found.detail) ? found.detail : [];
  const text = typeof found.detail === "string" ? found.detail : details[0]?.msg;
  throw new Refused(reply.status, details, text ?? `The service answered ${reply.status}.`);
}

export const get = (path, options) => api("GET", path, undefined, options);
export const post = (path, body = {}, options) => api("POST", path, body, options);

// What `ask` gives, once somebody answers.
export async function patiently(ask) {
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      if (!(error instanceof Away)) throw error;
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }
}
