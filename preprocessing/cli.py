"""What the commands of this package share: exit codes, arguments, progress on the terminal."""

import argparse
import sys
from typing import Any, Final, NoReturn

from preprocessing.events import EventLog

EXIT_OK: Final = 0
EXIT_OUR_FAULT: Final = 1
EXIT_REFUSED: Final = 2
EXIT_DISK_FULL: Final = 3


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong command line is not mistaken for a refused dataset."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_OUR_FAULT, f"{self.prog}: {message}\n")


class PrintedEvents(EventLog):
    """Events for the file and, in short, for the person who waits."""

    def emit(self, kind: str, **fields: Any) -> None:
        super().emit(kind, **fields)
        match kind, fields:
            case "stage", {"state": "start", "name": name}:
                print(f"{name} ...", flush=True)
            case "stage", {"name": name, "seconds": seconds}:
                print(f"{name} done in {seconds:.1f} s", flush=True)
            case "progress", {"name": name, "done": done, "total": total}:
                print(f"{name} {done}/{total}", flush=True)
            case "log", {"level": level, "message": message} if level != "ERROR":
                print(message, flush=True)
