// The same request as code. Keys are named, never written out.

const json = (body, indent) => JSON.stringify(body, null, 2).replaceAll("\n", `\n${indent}`);

function python(body, indent) {
  const text = json(body, indent);
  // JSON's literals outside of strings.
  return text.replace(/"(?:[^"\\]|\\.)*"|\b(true|false|null)\b/g, (found, word) => ({ true: "True", false: "False", null: "None" })[word] ?? found);
}

export const SNIPPETS = {
  curl: ({ origin, endpoint, body, key }) =>
    `curl -s ${origin}/${endpoint} \\
${key ? '  -H "Authorization: Key $FAL_KEY" \\\n' : ""}  -H 'content-type: application/json' \\
  -d @- <<'JSON'
${json(body, "")}
JSON`,
  python: ({ origin, endpoint, body, key }) =>
    `import ${key ? "os\n\nimport " : ""}httpx

request = httpx.post(
    "${origin}/${endpoint}",
${key ? '    headers={"Authorization": f"Key {os.environ[\'FAL_KEY\']}"},\n' : ""}    json=${python(body, "    ")},
)
request.raise_for_status()
print(request.json()["status_url"])`,
  javascript: ({ origin, endpoint, body, key }) =>
    `import { fal } from "@fal-ai/client";

fal.config({
  credentials: ${key ? "process.env.FAL_KEY" : '"any"'},
  proxyUrl: { url: "${origin}/proxy", when: "always" },
});

const result = await fal.subscribe("${endpoint}", {
  input: ${json(body, "  ")},
  logs: true,
});`,
};
