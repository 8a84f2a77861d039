"""A thread with a name only we know, in network namespaces only we use: nobody's traffic but ours in there."""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_CLONE_NEWNET, _CLONE_FILES = 0x40000000, 0x400
_PR_SET_NAME, _PR_GET_NAME = 15, 16
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFADDR = 0x8913, 0x8914, 0x8916
_IFF_UP = 1
_PATIENCE_S = 10.0
LOOPBACK_IFINDEX = 1
NETNS = Path("/proc/thread-self/ns/net")


def in_own_thread(work: Callable[[bytes], T], nonce: bytes | None = None) -> T:
    """What `work(nonce)` returns, run in a thread of its own that bears `nonce` as its name and sits on one CPU.

    Without a `nonce` it is a random one.

    Namespaces, names and CPU affinity belong to threads: all of it ends with this one. Ctrl-C reaches the caller;
    the thread is told, and given time to take its hooks away.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            name = nonce or _label()
            rename(name)
            with suppress(OSError):
                # The one the scheduler has just picked: any fixed one may be busy, with another guess even.
                os.sched_setaffinity(0, {_libc().sched_getcpu()})
            results.append(work(name))
        except BaseException as error:
            errors.append(error)
        finally:
            thread.finished.set()

    thread = _OwnThread(target=body, name="guess", daemon=True)
    try:
        thread.start()
        thread.finished.wait()
    except BaseException:
        thread.stopped.set()
        # Not join(): once interrupted, Python 3.11 takes the thread for ended.
        thread.finished.wait(_PATIENCE_S)
        raise
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _label() -> bytes:
    """Nobody else's, but no secret: a machine that has just booted gives those only once it has gathered noise."""
    return b"%014x" % random.Random().getrandbits(56)


class _OwnThread(threading.Thread):
    """A thread that can be told to stop, and does at the next `stop_if_told`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.stopped = threading.Event()
        self.finished = threading.Event()


def rename(name: bytes) -> None:
    """Gives this thread a name of at most 15 bytes."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name, 0, 0, 0)


def own_name() -> bytes:
    """This thread's name."""
    name = ctypes.create_string_buffer(16)
    ctypes.CDLL(None).prctl(_PR_GET_NAME, name, 0, 0, 0)
    return name.value


def unshare_files() -> None:
    """From now on this thread has a file table of its own, a copy of the one it shared. Raises OSError."""
    _check(_libc().unshare(_CLONE_FILES))


def stop_if_told() -> None:
    """Raises KeyboardInterrupt in a thread of `in_own_thread` whose caller was interrupted."""
    thread = threading.current_thread()
    if isinstance(thread, _OwnThread) and thread.stopped.is_set():
        raise KeyboardInterrupt


class Netns:
    """A network namespace held open by a descriptor."""

    def __init__(self) -> None:
        """The namespace this thread is in now."""
        self.fd = os.open(NETNS, os.O_RDONLY | os.O_CLOEXEC)
        self.inode = os.fstat(self.fd).st_ino

    @classmethod
    def fresh(cls) -> Netns:
        """A new one, entered, with its loopback up. Raises OSError where that is not allowed or not built in."""
        _check(_libc().unshare(_CLONE_NEWNET))
        _loopback_up()
        return cls()

    def enter(self) -> None:
        enter(self.fd)

    def close(self) -> None:
        os.close(self.fd)


@contextmanager
def elsewhere() -> Iterator[None]:
    """In a fresh namespace, and home again; where none can be had or entered, here: without CAP_SYS_ADMIN, for one."""
    with ExitStack() as stack:
        with suppress(OSError):
            home = Netns()
            stack.callback(home.close)
            # Who was not let out need not, and may not, come back.
            stack.callback(lambda: None if NETNS.stat().st_ino == home.inode else home.enter())
            stack.callback(Netns.fresh().close)
        yield


def enter(fd: int) -> None:
    """setns(2): this thread, and only it, moves to the network namespace `fd` stands for. Raises OSError."""
    _check(_libc().setns(fd, _CLONE_NEWNET))


def add_ipv6(address: str) -> None:
    """Gives this namespace's loopback an IPv6 address (no duplicate detection there). Raises OSError."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
        # struct in6_ifreq: address, prefix length, interface index.
        request = struct.pack("<16sIi", socket.inet_pton(socket.AF_INET6, address), 128, LOOPBACK_IFINDEX)
        fcntl.ioctl(control, _SIOCSIFADDR, request)


def wait_until_bindable(address: str, patience_s: float = 0.5) -> bool:
    """Whether the address leaves its tentative state in time: a worker of the kernel does that, a moment later."""
    deadline = time.monotonic() + patience_s
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        while time.monotonic() < deadline:
            try:
                probe.bind((address, 0))
            except OSError:
                time.sleep(0.0003)
            else:
                return True
    return False


def _loopback_up() -> None:
    for name in ("all", "lo"):
        # A host that switched IPv6 off by sysctl hands that down to new namespaces.
        with suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("<16sh14x", b"lo", 0)
        flags = struct.unpack("<16sh14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("<16sh14x", b"lo", flags | _IFF_UP))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
