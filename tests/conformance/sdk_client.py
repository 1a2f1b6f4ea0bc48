"""Runs a check's script with the `fal` SDK; started in a process of its own.

``python -S sdk_client.py <script> <given as JSON>``: without this environment's packages, only with
those in ``given.packages``. The script has ``apps`` (`fal.apps`), ``given`` and ``tell(value)``.
"""

import dataclasses
import json
import sys
from types import SimpleNamespace


def shown(value):
    """A status as data."""
    return {"is": type(value).__name__, **dataclasses.asdict(value)}


def tell(value):
    sys.stdout.write(json.dumps(value, default=shown) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    given = SimpleNamespace(**json.loads(sys.argv[2]))
    sys.path.insert(0, given.packages)
    import fal.apps

    names = {"apps": fal.apps, "given": given, "tell": tell}
    exec(compile(sys.argv[1], "<check>", "exec"), names)
