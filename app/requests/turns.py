"""Whose turn it is: owners take turns, each with its oldest request (`reliability.md` R19).

Normal requests come before low ones, whoever sent them. Among those of one priority, the owner who
was given a worker of the stage the longest ago is next: however many requests one key has waiting,
another one waits for one of them. Owners that run as many as they may are passed over, and have
their turn when they may run again.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    ScalarSelect,
    Table,
    and_,
    bindparam,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from app.db.models import Request, Stage, State, Turn
from app.keys import limits

_requests: Table = Request.__table__  # type: ignore[assignment]  # a declared class's table
_turns: Table = Turn.__table__  # type: ignore[assignment]
_IS_QUEUED: Final[ColumnElement[str]] = literal_column(f"'{State.QUEUED}'")
"""Not a parameter: SQLite uses a partial index only where it reads that its condition holds."""
_INSERT: Final[dict[str, Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_NOT_WRITTEN: Final = 2**62
"""Where numbers of requests begin that are not in the table yet: after all that are."""


def owners_in_turn(
    session: Session, stage: Stage, *claimable: ColumnElement[bool]
) -> Sequence[str]:
    """The owners with a ``claimable`` request in ``stage``, the next one first.

    Looks up each owner's first request in an index: what takes time is the number of owners, not of
    requests.
    """
    heads = _heads(stage, claimable)
    head = aliased(Request)
    return session.scalars(
        select(head.owner)
        .join(heads, heads.c.number == head.number)
        .outerjoin(Turn, and_(Turn.owner == head.owner, Turn.stage == stage))
        .order_by(head.priority, func.coalesce(Turn.taken, 0), head.number)
    ).all()


def _heads(stage: Stage, claimable: Sequence[ColumnElement[bool]]) -> Any:
    """A subquery of the number of each owner's first request."""
    waits = Request.state == _IS_QUEUED
    owners = select(func.min(Request.owner).label("owner")).where(waits).cte(recursive=True)
    following = (
        select(func.min(Request.owner))
        .where(waits, Request.owner > owners.c.owner)
        .correlate(owners)
        .scalar_subquery()
    )
    owners = owners.union_all(select(following).where(owners.c.owner.is_not(None)))
    first = (
        select(Request.number)
        .where(waits, Request.owner == owners.c.owner, Request.stage == stage, *claimable)
        .order_by(Request.priority, Request.number)
        .limit(1)
        .correlate(owners)
        .scalar_subquery()
    )
    return select(first.label("number")).select_from(owners).subquery()


def take(session: Session, owner: str, stage: Stage) -> None:
    """``owner`` was given a worker of ``stage``: it is the last one now.

    Waits for no other claim: one that notes a turn of the same owner at this moment does for both.
    """
    last = (
        select(func.coalesce(func.max(_turns.c.taken), 0) + 1)
        .where(_turns.c.stage == stage)
        .scalar_subquery()
    )
    mine = select(_turns.c.owner).where(_turns.c.owner == owner, _turns.c.stage == stage)
    connection = session.connection()
    if connection.scalar(mine) is None:
        new = _INSERT[connection.dialect.name](_turns).values(owner=owner, stage=stage, taken=last)
        connection.execute(new.on_conflict_do_nothing())
        return
    free = mine.with_for_update(skip_locked=True).scalar_subquery()
    connection.execute(
        update(_turns).where(_turns.c.owner == free, _turns.c.stage == stage).values(taken=last)
    )


@dataclass
class Line:
    """What one owner has waiting of one priority, in whatever stage."""

    num: int = 0
    first: float = inf
    """The smallest number of them."""


@dataclass
class Waiting:
    """What waits, as one transaction sees it."""

    lines: dict[tuple[int, str], Line]
    """By rank and owner."""
    taken: dict[tuple[str, str], int] = field(default_factory=dict)
    """`Turn` by owner and stage; empty where there is one owner only."""
    at_limit: Collection[str] = frozenset()
    """Owners that run as many as they may."""

    @property
    def total(self) -> int:
        return sum(line.num for line in self.lines.values())

    def position(self, owner: str, rank: int, stage: str, own_ahead: int | None = None) -> int:
        """How many requests come before the one of ``owner`` that has ``own_ahead`` of its own
        before it, of the same rank; None: one that is yet to come.

        Exact if nothing else comes, everything waits in one stage, and all jobs take as long.
        """
        if own_ahead is None:
            own_ahead = self._line(rank, owner).num
        mine = self._turn(owner, rank, stage)
        before = own_ahead
        for (other_rank, other), line in self.lines.items():
            if other != owner and other in self.at_limit:
                continue
            if other_rank < rank:
                before += line.num
            elif other_rank == rank and other != owner:
                is_first = self._turn(other, rank, stage) < mine
                before += min(line.num, own_ahead + is_first)
        return before

    def _turn(self, owner: str, rank: int, stage: str) -> tuple[int, int, float]:
        """Orders owners as they stand when ``rank`` begins to be served: who has the most of better
        ones will have been served last."""
        better = [self._line(other_rank, owner) for other_rank in range(rank)]
        first = min(line.first for line in better) if any(line.num for line in better) else None
        return (
            sum(line.num for line in better),
            self.taken.get((owner, stage), 0),
            self._line(rank, owner).first if first is None else first,
        )

    def _line(self, rank: int, owner: str) -> Line:
        return self.lines.get((rank, owner)) or Line()

    def add(self, owner: str, rank: int) -> None:
        """Another one of ``owner`` waits from now on."""
        line = self.lines.setdefault((rank, owner), Line())
        line.first = min(line.first, _NOT_WRITTEN + len(self.lines))
        line.num += 1


def own_ahead(of: Table) -> ScalarSelect[int]:
    """As a column: how many queued requests of the same owner and priority as ``of``'s come before
    it."""
    ahead = _requests.alias()
    return (
        select(func.count())
        .where(
            ahead.c.state == _IS_QUEUED,
            ahead.c.owner == of.c.owner,
            ahead.c.stage.in_(tuple(Stage)),  # for the index
            ahead.c.priority == of.c.priority,
            ahead.c.number < of.c.number,
        )
        .correlate(of)
        .scalar_subquery()
    )


def waiting(session: Session, owners: Iterable[str] = ()) -> Waiting:
    """Everything that waits now; ``owners`` are asked about, whether or not they have something
    waiting."""
    return waiting_in(session, lines(session), owners)


def waiting_in(
    session: Session, lines: dict[tuple[int, str], Line], owners: Iterable[str]
) -> Waiting:
    """`waiting`, with lines that were read before."""
    involved = {owner for _, owner in lines} | set(owners)
    taken: dict[tuple[str, str], int] = {}
    if len(involved) > 1:
        found = session.connection().execute(_TURNS, {"owners": sorted(involved)})
        taken = {(owner, stage): number for owner, stage, number in found}
    return Waiting(lines, taken, limits.passed_over(session))


def lines(session: Session) -> dict[tuple[int, str], Line]:
    """What waits, by rank and owner."""
    found: dict[tuple[int, str], Line] = {}
    for owner, rank, num, first in session.connection().execute(_LINES):
        line = found.setdefault((rank, owner), Line())
        line.num += num
        line.first = min(line.first, first)
    return found


# Not of the ORM, and built once: submits and polls ask them.
_LINES = (
    select(_requests.c.owner, _requests.c.priority, func.count(), func.min(_requests.c.number))
    .where(_requests.c.state == _IS_QUEUED)
    .group_by(_requests.c.owner, _requests.c.stage, _requests.c.priority)
)
_TURNS = select(_turns.c.owner, _turns.c.stage, _turns.c.taken).where(
    _turns.c.owner.in_(bindparam("owners", expanding=True))
)
