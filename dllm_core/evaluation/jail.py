"""Runs one program that a model wrote, with as little as possible within its reach. `execution` starts it.

Layers, each of which holds where the one above it is not to be had:

1. Linux namespaces (user, mount, network, process, IPC): every mounted file system read-only but a small one in memory,
   no network device, and all processes die with the first one. Capabilities are dropped once this is set up.
2. Limits of the kernel: processor time, memory, file size, open files, processes.
3. An audit hook in the interpreter: no network, no processes, no ctypes, no writing outside the folder. It keeps honest
   mistakes in; a program that means harm can get around it, so alone it is no boundary.

A program and its tests share an interpreter, and with it what tells that they ran to their end. What ends a program
early is no pass; a program that searches its interpreter for this file's variables can claim one.

Imports the standard library only: it runs with ``python -I`` in a folder and an environment of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable

# <linux/sched.h>, <linux/mount.h>, <linux/prctl.h>, <linux/capability.h>, and the number of a system call that is the
# same on every architecture, as all from 424 on.
NEW_MOUNTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NETWORK = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 0x1, 0x2, 0x4, 0x8, 0x4000, 0x40000
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY, SYS_MOUNT_SETATTR = -100, 0x8000, 0x1, 442
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, CAPABILITY_VERSION = 1, 38, 0x20080522

AF_UNIX = 1
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = (
    *("socket.", "ctypes.", "subprocess.", "pty.", "os.system", "os.exec", "os.fork", "os.spawn", "os.posix_spawn"),
    *("os.kill", "resource.setrlimit", "resource.prlimit"),
)
CHANGES = (
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.utime", "os.chmod"),
    *("os.chown", "os.setxattr", "os.removexattr", "shutil.rmtree", "shutil.move"),
)
LONGEST_REASON = 300


def main() -> None:
    """Read the order from standard input, run it, say what came of it on the pipe whose number is the argument."""
    pipe = int(sys.argv[1])
    order = json.load(sys.stdin)
    isolated = isolate(os.getcwd(), order["disk"])
    parent = os.getpid()
    child = os.fork()
    if child:
        os.close(pipe)
        _, status = os.waitpid(child, 0)
        os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
    die_with(parent, isolated=isolated)
    limit(order)
    if isolated:
        show_own_processes()
        drop_capabilities()
    tell(pipe, {"isolated": isolated})
    forbid(os.getcwd())
    reason = run(order["program"])
    tell(pipe, {"token": order["token"], "reason": reason})
    os._exit(0)  # threads that still run and handlers of the program have no say


def isolate(folder: str, disk: int) -> bool:
    """Move into namespaces of its own, with `folder` as the only place to write; False where that is not permitted."""
    if not sys.platform.startswith("linux"):
        return False
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_USER | NEW_MOUNTS | NEW_NETWORK | NEW_PIDS | NEW_IPC) != 0:
        return False
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    except OSError:
        return False
    read_only = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)  # struct mount_attr: set, clear, propagation, user
    steps = (
        libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None),
        libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, ctypes.byref(read_only), ctypes.c_size_t(32)),
        libc.mount(b"tmpfs", folder.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, f"size={disk}".encode()),
    )
    if any(steps):
        return False
    os.chdir(folder)  # the memory that is mounted there now, not the folder below it
    return True


def show_own_processes() -> None:
    """Mount /proc anew, for the process namespace of this process; where that is not permitted, all can be listed."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount(b"proc", b"/proc", b"proc", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, None)


def die_with(parent: int, *, isolated: bool) -> None:
    """Be killed when the process that waits is."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if not isolated and os.getppid() != parent:  # it went before that was set
            os._exit(1)


def limit(order: dict) -> None:
    """Set the kernel's limits, which cannot be raised again."""
    wanted = {
        "RLIMIT_CPU": order["cpu_seconds"],
        "RLIMIT_AS": order["memory"],
        "RLIMIT_DATA": order["memory"],
        "RLIMIT_FSIZE": order["disk"],
        "RLIMIT_NOFILE": 64,
        "RLIMIT_NPROC": order["processes"],
        "RLIMIT_CORE": 0,
    }
    for name, value in wanted.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def drop_capabilities() -> None:
    """Give up what the own user namespace granted, for good."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def forbid(folder: str) -> None:
    """Install the audit hook and take away what raises no event."""
    import _posixsubprocess

    _posixsubprocess.fork_exec = None  # type: ignore[assignment]
    sys.addaudithook(guard(os.path.realpath(folder)))


def guard(folder: str) -> Callable[[str, tuple], None]:
    """The hook: raises PermissionError on what a solution of an exercise has no business with."""
    real, inside, null = os.path.realpath, folder + os.sep, os.devnull

    def refuses(path: object) -> bool:
        if isinstance(path, int) or path is None:
            return False
        place = real(os.fsdecode(path))  # type: ignore[arg-type]
        return place not in (folder, null) and not place.startswith(inside)

    def hook(event: str, arguments: tuple) -> None:
        if event == "socket.__new__" and arguments[1] == AF_UNIX:
            return  # event loops have a pair of them; connecting and binding are events of their own
        if event.startswith(FORBIDDEN):
            raise PermissionError(f"{event} is not allowed here")
        if event == "open" and isinstance(arguments[0], str | bytes) and os.fsencode(arguments[0]).endswith(b"environ"):
            raise PermissionError("the environment of processes is not shown here")
        written = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        paths = arguments[:1] if written else arguments[:2] if event in CHANGES else ()
        if any(refuses(path) for path in paths if isinstance(path, str | bytes | os.PathLike)):
            raise PermissionError(f"{event} outside the folder of the program is not allowed")

    return hook


class Ending:
    """Notes what ended a program, whatever it was: ``sys.exit()`` in front of the tests is a failure too."""

    reason = ""

    def __enter__(self) -> Ending:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        if kind is not None:
            self.reason = f"{kind.__name__}: {error}".partition("\n")[0][:LONGEST_REASON]
        return True


def run(program: str) -> str:
    """What is wrong with a program, as one line; empty where it ran to its end."""
    with Ending() as ending:
        exec(compile(program, "<solution>", "exec"), {"__name__": "__main__"})
    return ending.reason


def tell(pipe: int, message: dict) -> None:
    """Send one line."""
    os.write(pipe, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
