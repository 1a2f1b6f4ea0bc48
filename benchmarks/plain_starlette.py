"""The framework's limit, to compare with: Starlette that returns a dict of a status' size."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

BASE = "http://127.0.0.1:8000/fal-ai/ltx23-trainer-v2/requests/00000000-0000-0000-0000-000000000000"


async def status(request: Request) -> JSONResponse:
    return JSONResponse(
        {
            "request_id": request.path_params["request_id"],
            "response_url": BASE,
            "status_url": f"{BASE}/status",
            "cancel_url": f"{BASE}/cancel",
            "status": "IN_QUEUE",
            "queue_position": 0,
            "logs": None,
            "metrics": {},
        }
    )


app = Starlette(routes=[Route("/fal-ai/ltx23-trainer-v2/requests/{request_id}/status", status)])
