// Runs a check's script with the unmodified @fal-ai/client; started in a process of its own.
//
// node js_client.mjs <script> <given as JSON>. The script has `fal`, `given`, `tell(value)`, which
// sends a value to the test, and `caught(call)`. How the client finds the service is one of the two
// ways that its documentation has: `given.base` (requestMiddleware) or `given.proxyUrl`.

import { ApiError, ValidationError, fal } from "@fal-ai/client";
import process from "node:process";

const given = JSON.parse(process.argv[3]);
const AsyncFunction = (async () => {}).constructor;

const here = (url) => url.replace(/^https:\/\/(queue\.fal\.run|fal\.run|rest\.fal\.ai)/, given.base);

fal.config({
  credentials: given.key,
  ...(given.proxyUrl
    ? { proxyUrl: { url: given.proxyUrl, when: "always" } }
    : { requestMiddleware: async (request) => ({ ...request, url: here(request.url) }) }),
});

function tell(value) {
  process.stdout.write(JSON.stringify(value ?? null) + "\n");
}

/** What `call` threw, as data; its value where it did not throw. */
async function caught(call) {
  const started = performance.now();
  const seconds = () => (performance.now() - started) / 1000;
  try {
    const value = await call();
    return { raised: null, value: value ?? null, seconds: seconds() };
  } catch (error) {
    return {
      raised: error.constructor.name,
      message: error.message,
      status: error.status ?? null,
      body: error.body ?? null,
      requestId: error.requestId ?? null,
      timeoutType: error.timeoutType ?? null,
      isApiError: error instanceof ApiError,
      isValidationError: error instanceof ValidationError,
      fields:
        error instanceof ValidationError && given.field
          ? error.getFieldErrors(given.field)
          : null,
      seconds: seconds(),
    };
  }
}

await new AsyncFunction("fal", "given", "tell", "caught", process.argv[2])(fal, given, tell, caught);
