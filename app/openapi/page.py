"""A Markdown page of one endpoint: for people, and for language models that write the calls."""

import json
from typing import Any, Final
from urllib.parse import urlsplit

from app.modes.base import AnyMode
from app.openapi.words import Words, words_of

MAX_SHOWN_DEFAULT: Final = 200
"""Characters of a default value; the built-in negative prompt is longer."""


def index_page(modes: tuple[AnyMode, ...], public_url: str) -> str:
    """All endpoints of the service."""
    return "\n".join(
        (
            "# Reelsmith",
            "",
            "> Trains LoRAs for the LTX-2.3 audio-video model on this team's own GPUs, and "
            "generates with them, behind fal's API: fal's clients work.",
            "",
            "## Endpoints",
            "",
            *(
                f"- [{mode.id}]({public_url}/models/{mode.id}/llms.txt): {mode.summary}"
                for mode in modes
            ),
            "",
            "## Reference",
            "",
            f"- [OpenAPI of the whole service]({public_url}/openapi.json)",
            *(
                f"- [OpenAPI of {mode.id}]({public_url}/api/openapi/queue/openapi.json"
                f"?endpoint_id={mode.id})"
                for mode in modes
            ),
            "",
        )
    )


def page_of(mode: AnyMode, public_url: str) -> str:
    """Everything that a caller of ``mode`` needs to know."""
    schema = mode.request_model.model_json_schema()
    example = schema["examples"][0]
    required = {name: example[name] for name in example if name in schema["required"]}
    words = words_of(mode, example, required)
    output = mode.output_model.model_json_schema()
    return "\n".join(
        (
            f"# {mode.title}",
            "",
            f"> {mode.summary}",
            "",
            "## Overview",
            "",
            f"- **Endpoint**: `{public_url}/{mode.id}`",
            f"- **Model ID**: `{mode.id}`",
            f"- **Kind**: {words.kind}",
            f"- **OpenAPI**: {public_url}/api/openapi/queue/openapi.json?endpoint_id={mode.id}",
            "",
            "## Price",
            "",
            words.price,
            "",
            f"## {words.heading}",
            "",
            *words.files,
            "",
            "## Input",
            "",
            *_fields(schema, schema),
            "",
            "Required fields only:",
            "",
            *_code("json", json.dumps(required, indent=2)),
            "",
            "With the usual settings:",
            "",
            *_code("json", json.dumps(example, indent=2)),
            "",
            "## Output",
            "",
            *_fields(output, output, False),
            "",
            "Every file is `{url, content_type, file_name, file_size}`; its URL needs no key and "
            "expires, reading the result again gives a new one.",
            "",
            "## Errors",
            "",
            "- Input that breaks a rule: 422 at submit, `detail` is a list of `{loc, msg, type}`.",
            words.bad_files,
            "- 401 without a valid key, 404 for a request that is not yours.",
            "",
            "## Calls",
            "",
            *_calls(mode, public_url, required, words),
            "",
        )
    )


def _fields(
    root: dict[str, Any], schema: dict[str, Any], wants_required: bool = True, indent: str = ""
) -> list[str]:
    """A list item for every property, with the properties of objects below it."""
    lines = []
    fields = schema["properties"]
    for name in sorted(fields, key=lambda name: name not in schema.get("required", ())):
        field = fields[name]
        need = "required" if name in schema.get("required", ()) else "optional"
        kind = _type(field)
        lines.append(f"{indent}- **`{name}`** (`{kind}`{f', _{need}_' if wants_required else ''})")
        lines.append(f"{indent}  {field.get('description', '')}".rstrip())
        if wants_required:
            lines += [f"{indent}  - {fact}" for fact in _facts(field)]
            for says, part in (
                ("Each is an object with", field.get("items", {})),
                *(("An object has", option) for option in field.get("anyOf", ())),
            ):
                if "$ref" in part:
                    inner = root["$defs"][part["$ref"].rsplit("/", 1)[1]]
                    lines.append(f"{indent}  - {says}:")
                    lines += _fields(root, inner, indent=f"{indent}    ")
    return lines


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    if "$ref" in field:
        return str(field["$ref"].rsplit("/", 1)[1])
    if field.get("type") == "array":
        items = field["items"]
        return f"list of {'object' if '$ref' in items else _type(items)}"
    return str(field["type"])


def _facts(field: dict[str, Any]) -> list[str]:
    """Default, range and choices, as the schema has them."""
    facts = []
    if "default" in field:
        shown = json.dumps(field["default"])
        if len(shown) > MAX_SHOWN_DEFAULT:
            shown = f'{shown[:MAX_SHOWN_DEFAULT]}..."'
        facts.append(f"Default: `{shown}`")
    if "minimum" in field or "maximum" in field:
        facts.append(f"Range: `{field.get('minimum')}` to `{field.get('maximum')}`")
    for option in field.get("anyOf", ()):
        facts += _facts(option)
    if "multipleOf" in field:
        facts.append(f"A multiple of `{field['multipleOf']}`")
    if "enum" in field:
        facts.append("One of: " + ", ".join(f"`{json.dumps(value)}`" for value in field["enum"]))
    if "maxLength" in field:
        facts.append(f"At most {field['maxLength']} characters")
    if "maxItems" in field:
        few, many = field.get("minItems", 0), field["maxItems"]
        facts.append(f"Exactly {many} entries" if few == many else f"At most {many} entries")
    return facts


def _code(language: str, text: str) -> list[str]:
    return [f"```{language}", *text.splitlines(), "```"]


def _calls(mode: AnyMode, public_url: str, arguments: dict[str, Any], words: Words) -> list[str]:
    body = json.dumps(arguments, indent=2)
    uploads = "\n".join(
        f'{name} = fal_client.upload_file("{file}")' for name, file in words.uploads.items()
    )
    secure = urlsplit(public_url).scheme == "https"
    host = public_url.partition("://")[2]
    environment = (
        (
            "Or without a line of code, since this host has https: "
            f"`FAL_RUN_HOST={host}/run FAL_QUEUE_RUN_HOST={host}` in the environment (uploads "
            "still need the two lines below)."
        )
        if secure
        else "fal's client speaks https to hosts from its environment, so over http it is told so:"
    )
    return [
        "### curl",
        "",
        *_code(
            "bash",
            f"""curl {public_url}/{mode.id} \\
  -H "Authorization: Key $FAL_KEY" -H "Content-Type: application/json" \\
  -d '{body}'
# {{"request_id": ..., "status_url": ..., "response_url": ..., "cancel_url": ...}}
curl -H "Authorization: Key $FAL_KEY" "$STATUS_URL?logs=1"          # until COMPLETED
curl -H "Authorization: Key $FAL_KEY" "$RESPONSE_URL"
curl -N -H "Authorization: Key $FAL_KEY" "$STATUS_URL/stream?logs=1" # or follow it live""",
        ),
        "",
        "### Python",
        "",
        environment,
        "",
        *_code(
            "python",
            f"""import fal_client
import fal_client.client as wire

wire.QUEUE_URL_FORMAT = "{public_url}/"
wire.RUN_URL_FORMAT = "{public_url}/run/"
wire.REST_URL = wire.CDN_URL = "{public_url}"

{uploads}
result = fal_client.subscribe(
    "{mode.id}",
    arguments={words.arguments!r},
    with_logs=True,
    on_queue_update=print,
)
print(result["{words.result}"]["url"])""",
        ),
        "",
        "### JavaScript",
        "",
        *_code(
            "js",
            f"""import {{ fal }} from "@fal-ai/client";

fal.config({{
  credentials: process.env.FAL_KEY,
  proxyUrl: {{ url: "{public_url}/proxy", when: "always" }},
}});
const result = await fal.subscribe("{mode.id}", {{
  input: {body.replace(chr(10), chr(10) + "  ")},
  mode: "streaming",
  logs: true,
  onQueueUpdate: (update) => console.log(update.status, update.logs?.at(-1)?.message),
}});
console.log(result.data.{words.result}.url);""",
        ),
    ]
