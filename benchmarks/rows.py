"""Lines of a benchmark's result, with the bounds they must keep."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the result: a number, and the bounds it must keep where there are any."""

    what: str
    value: float
    form: str
    """How numbers of this row are printed: a format specification."""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def missed(self) -> bool:
        too_low = self.at_least is not None and self.value < self.at_least
        return too_low or (self.at_most is not None and self.value > self.at_most)

    @property
    def gate(self) -> str:
        bounds = ((">=", self.at_least), ("<=", self.at_most))
        return ", ".join(
            f"{sign} {bound:{self.form}}" for sign, bound in bounds if bound is not None
        )

    def __str__(self) -> str:
        mark = " **missed**" if self.missed else ""
        return f"| {self.what} | {self.value:{self.form}}{mark} | {self.gate} |"


def table(rows: list[Row]) -> str:
    lines = ["| what | measured | gate |", "|---|---|---|"]
    return "\n".join([*lines, *map(str, rows)])
