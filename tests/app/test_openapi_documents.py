"""The documents of the API: the whole one, fal's form of it per endpoint, and the pages."""

import json
import re
from typing import Any

import pytest
from fastapi.routing import APIRoute
from openapi_spec_validator import validate

from app import modes
from app.modes.base import AnyMode, Generation, Training
from app.openapi.endpoint import schema_name
from tests.app.conftest import Gateway, running

RESULTS = {Training: ["lora_file", "config_file"], Generation: ["video", "seed", "prompt"]}
ONE_MODE = pytest.mark.parametrize("mode", modes.all(), ids=lambda mode: mode.path)


def document(gateway: Gateway) -> dict[str, Any]:
    found: dict[str, Any] = gateway.client.get("/openapi.json").json()
    return found


def endpoint(gateway: Gateway, name: str) -> dict[str, Any]:
    reply = gateway.client.get("/api/openapi/queue/openapi.json", params={"endpoint_id": name})
    assert reply.status_code == 200
    found: dict[str, Any] = reply.json()
    return found


def page(gateway: Gateway, name: str) -> str:
    reply = gateway.client.get(f"/models/{name}/llms.txt")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/markdown; charset=utf-8"
    return reply.text


def without_examples(found: Any) -> Any:
    """3.0 has no ``examples`` in schemas; fal's documents have."""
    if isinstance(found, dict):
        return {key: without_examples(value) for key, value in found.items() if key != "examples"}
    return [without_examples(item) for item in found] if isinstance(found, list) else found


def test_the_whole_document_is_valid(shared_gateway: Gateway) -> None:
    validate(document(shared_gateway))


def test_it_has_every_route(shared_gateway: Gateway) -> None:
    paths = document(shared_gateway)["paths"]
    for route in shared_gateway.client.app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            assert {method.lower() for method in route.methods} <= set(paths[route.path_format])
    assert "put" in paths["/files/{grant}/{key}"]
    assert "post" in paths["/run/fal-ai/ltx23-trainer-v2/t2v"]


def test_every_operation_has_its_replies(shared_gateway: Gateway) -> None:
    for path, item in document(shared_gateway)["paths"].items():
        for method, operation in item.items():
            replies = set(operation["responses"])
            assert {"403", "414", "431", "500", "503"} <= replies, path
            assert ("401" in replies) == ("security" in operation), path
            assert ("413" in replies) == (method in ("post", "put")), path
            if "{request_id}" in path:
                assert {"401", "404"} <= replies, path


def statuses(gateway: Gateway, method: str, path: str) -> set[str]:
    return set(document(gateway)["paths"][path][method]["responses"])


def test_the_replies_of_the_queue(shared_gateway: Gateway) -> None:
    app = "/fal-ai/ltx23-trainer-v2"
    request = f"{app}/requests/{{request_id}}"
    assert {"200", "400", "413", "415", "422", "429"} <= statuses(
        shared_gateway, "post", f"{app}/t2v"
    )
    assert {"200", "202"} <= statuses(shared_gateway, "get", f"{request}/status")
    assert {"200", "400", "422", "499", "504"} <= statuses(shared_gateway, "get", request)
    cancel = statuses(shared_gateway, "put", f"{request}/cancel")
    assert {"202", "400", "404"} <= cancel
    assert "200" not in cancel
    files = statuses(shared_gateway, "get", "/files/{grant}/{key}")
    assert {"200", "206", "304", "403", "404", "416"} <= files


@ONE_MODE
@pytest.mark.parametrize("name", ["id", "path"])
def test_the_document_of_an_endpoint(shared_gateway: Gateway, mode: AnyMode, name: str) -> None:
    found = endpoint(shared_gateway, getattr(mode, name))
    validate(without_examples(found))
    request = f"/{mode.id}/requests/{{request_id}}"
    assert set(found["paths"]) == {
        f"/{mode.id}",
        request,
        f"{request}/status",
        f"{request}/cancel",
    }
    assert found["info"]["x-fal-metadata"]["endpointId"] == mode.id
    assert found["servers"] == [{"url": shared_gateway.settings.public_url}]
    given = found["components"]["schemas"][f"{schema_name(mode.id)}Input"]
    fields = list(mode.request_model.model_fields)
    assert given["x-fal-order-properties"] == list(given["properties"]) == fields
    taken = found["components"]["schemas"][f"{schema_name(mode.id)}Output"]
    required = mode.output_model.model_json_schema()["required"]
    assert taken["required"] == required == RESULTS[type(mode)]
    assert found["info"]["x-fal-metadata"]["category"] == mode.category
    assert '"null"' not in json.dumps(found)
    assert "$defs" not in json.dumps(found)


def test_what_may_be_null(shared_gateway: Gateway) -> None:
    found = endpoint(shared_gateway, "t2v")["components"]["schemas"]
    given = found["Ltx23TrainerV2T2vInput"]["properties"]["with_audio"]
    assert (given["type"], given["nullable"], given["default"]) == ("boolean", True, None)
    video = found["Ltx23TrainerV2T2vOutput"]["properties"]["video"]
    assert video["allOf"] == [{"$ref": "#/components/schemas/File"}]
    assert video["nullable"]


@pytest.mark.parametrize("name", ["", "fal-ai/flux", "fal-ai/ltx23-trainer-v2", "x" * 5_000])
def test_unknown_endpoints(shared_gateway: Gateway, name: str) -> None:
    params = {"endpoint_id": name}
    reply = shared_gateway.client.get("/api/openapi/queue/openapi.json", params=params)
    assert (reply.status_code, reply.json()["error_type"]) == (404, "not_found")
    assert shared_gateway.client.get(f"/models/{name}/llms.txt").status_code == 404


def test_no_endpoint_named(shared_gateway: Gateway) -> None:
    reply = shared_gateway.client.get("/api/openapi/queue/openapi.json")
    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"] == ["query", "endpoint_id"]


@ONE_MODE
def test_the_page_has_every_field(shared_gateway: Gateway, mode: AnyMode) -> None:
    text = page(shared_gateway, mode.id)
    assert text == page(shared_gateway, mode.path)
    given = text[text.index("## Input") : text.index("## Output")]
    schema = mode.request_model.model_json_schema()
    for name, field in schema["properties"].items():
        (entry,) = re.findall(rf"^- \*\*`{name}`\*\* .*\n(?:  .*\n)*", given, re.MULTILINE)
        assert field["description"] in entry
        assert ("_required_" in entry.partition("\n")[0]) == (name in schema["required"])
        if name == "number_of_steps":
            assert "Default: `2000`" in entry
            assert "Range: `100` to `20000`" in entry
    for mentioned in (str(mode.price_per_unit), *RESULTS[type(mode)], mode.summary):
        assert mentioned in text
    inner = re.findall(r"^    - \*\*`(\w+)`\*\*", given, re.MULTILINE)
    objects = [part["properties"] for part in schema["$defs"].values()]
    assert sorted(inner) == sorted(name for properties in objects for name in properties)


def test_the_pages_examples_are_taken(shared_gateway: Gateway) -> None:
    for mode in modes.all():
        text = page(shared_gateway, mode.id)
        for example in re.findall(r"```json\n(.*?)```", text, re.DOTALL):
            reply = shared_gateway.client.post(f"/{mode.id}", json=json.loads(example))
            assert reply.status_code == 200, reply.text
        for program in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            compile(program, mode.id, "exec")


def test_the_dataset_is_the_modes(shared_gateway: Gateway) -> None:
    assert "clip01_mask" in page(shared_gateway, "inpaint")
    assert ".webm" in page(shared_gateway, "inpaint")
    assert "clip01_mask" not in page(shared_gateway, "t2v")
    assert ".jpeg" in page(shared_gateway, "t2v")
    assert "No images." in page(shared_gateway, "outpaint")


def test_the_index_leads_to_all(shared_gateway: Gateway) -> None:
    text = shared_gateway.client.get("/llms.txt").text
    links = re.findall(r"\((http[^)]*)\)", text)
    assert len(links) == 2 * len(modes.all()) + 1
    for link in links:
        assert shared_gateway.client.get(link).status_code == 200


def test_documents_need_no_key(tmp_path: Any, migrated_sqlite: Any) -> None:
    with running(tmp_path, migrated_sqlite, api_keys="secret") as gateway:
        for path in ("/openapi.json", "/llms.txt", "/models/t2v/llms.txt"):
            assert gateway.client.get(path).status_code == 200
