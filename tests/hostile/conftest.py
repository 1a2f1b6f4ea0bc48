"""Every test here is measured; what it takes is part of what it shows (`costs.py`)."""

from collections.abc import Iterator

import pytest

from tests.app.conftest import migrated_sqlite
from tests.hostile.catalogue import number_of
from tests.hostile.costs import Meter
from tests.hostile.gateway import Served, serving

__all__ = ["migrated_sqlite"]

MAX_SECONDS = 60.0
"""Of any case: the bound of `spec/reliability.md` 4.3, which is the most generous."""


@pytest.fixture(autouse=True)
def meter(request: pytest.FixtureRequest) -> Iterator[Meter]:
    """The costs of this test."""
    meter = Meter(request.node.nodeid)
    if number_of(meter.case) is None:
        yield meter
        return
    with meter.running():
        yield meter


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The gateway as a process, with two tenants, for all tests of this folder."""
    with serving(tmp_path_factory.mktemp("served")) as served:
        yield served
