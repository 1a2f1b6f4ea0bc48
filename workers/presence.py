"""A worker says that it is there, and how its device is doing, also while it has nothing to do."""

import csv
import os
import shutil
import subprocess
import threading
from typing import Any, Final

import structlog
from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.clock import db_now
from app.db.engine import Database
from app.db.models import Worker
from workers.fitness import Fitness

log = structlog.get_logger()

EVERY_S: Final = 10.0
FORGOTTEN_AFTER_S: Final = 24 * 3600.0
"""Long enough to see on the next morning that a worker is missing."""
QUERY_TIMEOUT_S: Final = 5.0
GPU_QUERY: Final = "name,memory.total,memory.used,utilization.gpu"
MIB: Final = 1 << 20


def announce(database: Database, name: str, queue: str, fitness: Fitness | None = None) -> None:
    """Say it every `EVERY_S` seconds, from a thread that ends with the process."""
    thread = threading.Thread(
        target=_run, args=(database, name, queue, fitness), name="presence", daemon=True
    )
    thread.start()


def _run(database: Database, name: str, queue: str, fitness: Fitness | None) -> None:
    pause = threading.Event()
    while True:
        try:
            facts = device_facts(queue)
            if fitness is not None:
                facts["lacks"] = fitness.lacks
            with database.write() as session:
                say(session, name, queue, facts)
        except (SQLAlchemyError, OSError) as error:
            log.warning("presence.unsaid", error=repr(error))
        pause.wait(EVERY_S)


def say(session: Session, name: str, queue: str, facts: dict[str, Any]) -> None:
    """Write it down, and forget workers that were not seen for a day."""
    row = session.get(Worker, name)
    if row is None:
        session.add(Worker(name=name, queue=queue, facts=facts))
    else:
        row.queue, row.facts = queue, facts
        row.seen_at = session.scalar(select(db_now())) or row.seen_at
    session.execute(delete(Worker).where(Worker.seen_at < db_now() - FORGOTTEN_AFTER_S))


def device_facts(queue: str) -> dict[str, Any]:
    """Of the GPU, for a worker that uses one; else of the machine.

    ``queue``: its queues, with commas between them.
    """
    return (gpu_facts() if "gpu" in queue.split(",") else None) or machine_facts()


def gpu_facts() -> dict[str, Any] | None:
    """Of the first visible NVIDIA GPU, from its driver; None where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"
    try:
        answer = subprocess.run(
            [tool, f"--id={visible}", f"--query-gpu={GPU_QUERY}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=QUERY_TIMEOUT_S,
            check=True,
        ).stdout
        return parse_gpu(answer)
    except (subprocess.SubprocessError, OSError, ValueError, StopIteration) as error:
        log.warning("presence.no_gpu_facts", error=repr(error))
        return None


def parse_gpu(answer: str) -> dict[str, Any]:
    """One line of nvidia-smi's CSV. A value that the driver does not tell is null.

    >>> parse_gpu("NVIDIA H200, 143771, 1024, 97")["load_percent"]
    97.0
    """
    name, total, used, load = (cell.strip() for cell in next(csv.reader([answer.strip()])))
    return {
        "device": name,
        "memory_total_bytes": _number(total, MIB),
        "memory_used_bytes": _number(used, MIB),
        "load_percent": _number(load, 1),
    }


def _number(text: str, unit: int) -> float | None:
    return float(text) * unit if text.replace(".", "", 1).isdigit() else None


def machine_facts() -> dict[str, Any]:
    """Of CPU and memory; memory only where the system tells it as Linux does."""
    cores = os.cpu_count() or 1
    facts: dict[str, Any] = {
        "device": f"CPU, {cores} cores",
        "load_percent": round(min(100.0, os.getloadavg()[0] / cores * 100), 1),
    }
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file}
        facts["memory_total_bytes"] = found["MemTotal"]
        facts["memory_used_bytes"] = found["MemTotal"] - found["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        pass  # not told here
    return facts
