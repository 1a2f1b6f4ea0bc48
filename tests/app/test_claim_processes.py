"""Two processes on one database: every request is claimed once."""

import subprocess
import sys

from app.db.engine import Database
from tests.app.conftest import submit

CLAIMER = """
import sys
from app.db.engine import Database
from app.db.models import Stage
from app.requests import lifecycle
database = Database(sys.argv[1])
sys.stdin.readline()
while True:
    with database.write() as session:
        claim = lifecycle.claim(session, Stage.PREPARE, sys.argv[2])
    if claim is None:
        break
    print(claim.request_id, flush=True)
database.close()
"""


def test_processes_get_different_requests(database: Database, database_url: str) -> None:
    ids = sorted(submit(database) for _ in range(30))
    claimers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMER, database_url, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    for claimer in claimers:
        assert claimer.stdin is not None
        claimer.stdin.write("go\n")
        claimer.stdin.flush()
    outputs = [claimer.communicate(timeout=60)[0] for claimer in claimers]
    assert [claimer.returncode for claimer in claimers] == [0, 0]
    assert sorted("".join(outputs).split()) == ids
