"""The gateway with one mode more, whose id has a sub path of two parts (C3).

fal's family has such ids (`ic-lora/v2v`); none of the service's own modes does.
"""

import dataclasses

from app import modes
from app.cli import main

PATH = "ic-lora/v2v"


def register() -> None:
    """Also for the test, whose worker bills by the mode."""
    t2v = modes.by_path("t2v")
    modes._BY_PATH[PATH] = dataclasses.replace(t2v, path=PATH, id=f"{t2v.app}/{PATH}")


def unregister() -> None:
    del modes._BY_PATH[PATH]


if __name__ == "__main__":
    register()
    main(["serve"])
