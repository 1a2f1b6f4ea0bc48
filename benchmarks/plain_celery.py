"""What a project usually ships, to compare with: FastAPI that calls Celery's ``delay()``.

    uvicorn benchmarks.plain_celery:app

Same schema, same Redis, no durable row, no owner, no queue position.
"""

import os
import uuid

from celery import Celery
from fastapi import FastAPI

from app.modes.t2v import MODE

app = FastAPI()
celery = Celery("plain", broker=os.environ["REELSMITH_REDIS_URL"])
Body = MODE.request_model


@celery.task(name="plain.train")
def train(request_id: str, body: dict[str, object]) -> None:
    """Never runs here."""


@app.post("/t2v")
def submit(body: Body) -> dict[str, str]:  # type: ignore[valid-type]
    request_id = str(uuid.uuid4())
    train.delay(request_id, body.model_dump(mode="json"))  # type: ignore[attr-defined]
    return {"request_id": request_id, "status": "IN_QUEUE"}
