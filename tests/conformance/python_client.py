"""Runs a check's script with the unmodified `fal_client`; started in a process of its own.

``python python_client.py <script> <given as JSON>``. The script has ``fal_client``, ``given``,
``tell(value)``, which sends a value to the test, and ``caught(call)``.
"""

import dataclasses
import json
import sys
import time
from types import SimpleNamespace

import fal_client


def shown(value):
    """A handle or a status as data."""
    fields = {
        field.name: getattr(value, field.name)
        for field in dataclasses.fields(value)
        if field.name not in ("app_id", "client")
    }
    return {"is": type(value).__name__, **fields}


def tell(value):
    sys.stdout.write(json.dumps(value, default=shown) + "\n")
    sys.stdout.flush()


def caught(call):
    """What ``call`` raised, as data; its value where it did not raise."""
    started = time.monotonic()
    try:
        found = {"raised": None, "value": call()}
    except Exception as error:
        found = {
            "raised": type(error).__name__,
            "text": str(error),
            "message": getattr(error, "message", None),
            "status": getattr(error, "status_code", None),
            "error_type": getattr(error, "error_type", None),
            "headers": dict(getattr(error, "response_headers", None) or {}),
            "request_id": getattr(error, "request_id", None),
        }
    return {**found, "seconds": time.monotonic() - started}


if __name__ == "__main__":
    given = SimpleNamespace(**json.loads(sys.argv[2]))
    names = {"fal_client": fal_client, "given": given, "tell": tell, "caught": caught}
    exec(compile(sys.argv[1], "<check>", "exec"), names)
