"""Fences around a process that decodes foreign files: what is left to it if a decoder fails.

Linux gives them to unprivileged processes, and each is asked for by itself, because kernels and
containers grant different ones:

- a network namespace of its own, with nothing in it (``unshare``): no connection leads anywhere;
- Landlock: files can be read where the libraries lie, and written in one folder; with a newer
  kernel, TCP connections are refused as well.

``python -m preprocessing.confinement`` prints what this machine grants. What it does not, the
other layers must bear: FFmpeg is given no name but ``file:`` and one demuxer (`media.containers`).
"""

import contextlib
import ctypes
import os
import struct
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_PR_SET_NO_NEW_PRIVS: Final = 38

# linux/landlock.h; the numbers of its system calls are the same on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
"""Executing is permitted nowhere: libraries are mapped, which is reading."""
_FS_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Version -> how many rights it knows, counted from the lowest bit; newer ones know as many."""
_ON_FILES: Final = 0b1100_0000_0000_0111
"""Rights that a rule for a single file can have."""
_TCP_VERSION, _SCOPE_VERSION = 4, 6

_SYSTEM: Final = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo"),
    *("/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/urandom"),
    *("/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu"),
)
"""What libraries read while they load. No data of anybody."""


@dataclass(frozen=True)
class Confinement:
    """Which fences stand."""

    network: bool
    """No network but an empty one."""
    files: bool
    """No files but the libraries' and its own folder."""
    tcp: bool
    """No TCP connection, in whichever network."""


NONE: Final = Confinement(network=False, files=False, tcp=False)


def confine(writable: Path | None, readable: Iterable[Path] = ()) -> Confinement:
    """Confine this process and its later children, for good. Call it before any thread starts.

    ``writable`` is the folder it works in, ``readable`` what it needs besides the libraries.
    Without ``writable``, files are not confined.
    """
    if sys.platform != "linux":
        return NONE
    network = _leave_network()
    version = 0 if writable is None else _landlock_version()
    if writable is None or version < 1:
        return Confinement(network, files=False, tcp=False)
    files = _restrict_files(version, writable, [*_code(), *readable])
    return Confinement(network, files, tcp=files and version >= _TCP_VERSION)


def _leave_network() -> bool:
    """Root may do it directly, others inside a user namespace of their own, where that is on."""
    libc = ctypes.CDLL(None, use_errno=True)
    return not libc.unshare(_CLONE_NEWNET) or not libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _landlock_version() -> int:
    """0 or less: not in this kernel, or switched off."""
    return int(_call(_CREATE_RULESET, None, 0, _ASK_VERSION))


def _restrict_files(version: int, writable: Path, readable: Iterable[Path]) -> bool:
    rights = (1 << _FS_RIGHTS.get(version, _FS_RIGHTS[5])) - 1
    ruleset = _call(_CREATE_RULESET, *_sized(_ruleset(version, rights)), 0)
    if ruleset < 0:
        return False
    try:
        for path in readable:
            _allow(ruleset, path, _READ_FILE | _READ_DIR)
        if not _allow(ruleset, writable, rights & ~_EXECUTE):
            return False
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return _call(_RESTRICT_SELF, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _ruleset(version: int, rights: int) -> bytes:
    """``struct landlock_ruleset_attr`` as long as ``version`` knows it."""
    attributes = struct.pack("=Q", rights)
    if version >= _TCP_VERSION:
        attributes += struct.pack("=Q", 0b11)  # bind and connect
    if version >= _SCOPE_VERSION:
        attributes += struct.pack("=Q", 0b11)  # abstract sockets of others, signals to others
    return attributes


def _allow(ruleset: int, path: Path, rights: int) -> bool:
    """Permit ``rights`` at and below ``path``; what does not exist needs no permission."""
    with contextlib.suppress(OSError):
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not path.is_dir():
                rights &= _ON_FILES
            rule = struct.pack("=Qi", rights, file)
            return _call(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0) == 0
        finally:
            os.close(file)
    return False


def _code() -> Iterator[Path]:
    """Where the interpreter and the libraries are. Of other folders on the path, such as the one
    Python was started in, only the packages: data may lie beside them."""
    yield from map(Path, (*_SYSTEM, sys.prefix, sys.base_prefix))
    yield Path(__file__).parent
    for entry in map(Path, sys.path):
        if entry.name in ("site-packages", "dist-packages") or entry.suffix == ".zip":
            yield entry
        elif entry.is_dir():
            yield from (child.parent for child in entry.glob("*/__init__.py"))
            yield from entry.glob("*.py")


def _sized(data: bytes) -> tuple[bytes, int]:
    return data, len(data)


def _call(number: int, *arguments: int | bytes | None) -> int:
    """A system call; -1 where the kernel does not know it or refuses it."""
    libc = ctypes.CDLL(None, use_errno=True)
    passed = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return int(libc.syscall(ctypes.c_long(number), *passed))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        pid = os.fork()
        if pid == 0:
            print(confine(Path(folder)), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
