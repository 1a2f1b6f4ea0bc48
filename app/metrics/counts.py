"""What gateways and workers count of what they do themselves.

Counts begin at 0 with each process; a worker's survive its children (`workers/__init__.py`).
"""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, of no use here

WAITS_S: Final = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
STAGES_S: Final = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600)
STEPS_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32)

SUBMITS: Final = Counter(
    "reelsmith_submits", "Submits that were accepted.", ["mode", "repeated"]
)  # fmt: skip
WEBHOOKS: Final = Counter(
    "reelsmith_webhook_attempts", "Attempts to deliver a webhook.", ["outcome"]
)
REAPED: Final = Counter(
    "reelsmith_reaped", "Requests that the reaper found without a worker.", ["end"]
)
BROKER_ERRORS: Final = Counter(
    "reelsmith_broker_errors", "Wake-ups that the broker did not take; they are repeated."
)
STORE_ERRORS: Final = Counter(
    "reelsmith_store_errors", "Calls to the store that failed, each try.", ["kind"]
)
ATTEMPTS: Final = Counter(
    "reelsmith_attempts", "Attempts by how they ended.", ["stage", "outcome"]
)  # fmt: skip
RETRIES: Final = Counter(
    "reelsmith_retries", "Attempts that failed and are repeated, by cause.", ["stage", "cause"]
)
LEASE_LOSSES: Final = Counter(
    "reelsmith_lease_losses", "Attempts whose worker found that it had lost its lease.", ["stage"]
)
QUEUE_WAIT: Final = Histogram(
    "reelsmith_queue_wait_seconds",
    "From the submit to the first attempt.",
    ["stage"],
    buckets=WAITS_S,
)
STAGE_TIME: Final = Histogram(
    "reelsmith_stage_seconds", "What a stage of an attempt took.", ["stage"], buckets=STAGES_S
)
STEP_TIME: Final = Histogram(
    "reelsmith_step_seconds", "A training step, the mean of each report.", buckets=STEPS_S
)
UNFIT: Final = Gauge(
    "reelsmith_worker_unfit",
    "1 while a GPU worker takes nothing because its machine lacks model or GPU.",
    multiprocess_mode="mostrecent",
)
