"""Runs the Python program on standard input with few rights. A script of its own: nothing but the standard library.

    python -I -S sandbox.py '{"isolation": "namespaces", "seconds": 5, "memory_mib": 256, "root": "/tmp/empty"}'

``limits`` bounds processor time and memory of each process, the size of files and the number of open ones. Unless the
caller is root, it bounds the number of processes. It empties the environment. The program still may read and write what
its user may, use the network, and start processes that outlive it.

``namespaces`` adds namespaces of user, mount, network, process and interprocess ids (Linux, ``unshare(2)``). The
program sees the system's libraries and Python's, read-only, and a small directory of its own in memory. No network
device is up, not even the loopback. No other process can be seen or signalled, and all that it starts ends with it. It
has no capability, even if the caller is root. The kernel itself is shared: a fault of the kernel is a way out.

Exit status: the program's; 128 plus the signal that ended it; 120 if the isolation could not be set up.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import struct
import sys

NOT_ISOLATED = 120
FILE_BYTES = 4 * 2**20
DIRECTORY_BYTES = 64 * 2**20
OPEN_FILES = 64
PROCESSES = 64

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = (
    0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_READ_ONLY, _NO_SETUID = 0x1, 0x2
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SYSTEM = ("/usr", "/lib", "/lib64", "/bin")
_NOBODY = 65534

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Becomes the program, or waits for it."""
    settings = json.loads(sys.argv[1])
    # Not the one of a virtual environment: the program gets the standard library alone.
    python = os.path.realpath(sys.executable)
    _die_with_parent()
    if settings["isolation"] == "namespaces":
        try:
            _isolate(settings["root"])
        except OSError as error:
            print(f"sandbox: {error.strerror}: {error.filename}", file=sys.stderr)  # noqa: T201
            os._exit(NOT_ISOLATED)
    _limit(settings["seconds"], settings["memory_mib"])
    os.execve(python, [python, "-I", "-S", "-"], {"LC_ALL": "C.UTF-8", "HOME": "/tmp"})  # noqa: S606, S108


def _isolate(root: str) -> None:
    """Returns in a child process that is alone in its namespaces; the caller itself waits for that child and ends."""
    user, group = os.geteuid(), os.getegid()
    _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWPID | _CLONE_NEWNET | _CLONE_NEWIPC), "unshare")
    _write("/proc/self/setgroups", "deny")
    # Not root inside: the program that is executed has no capability then.
    _write("/proc/self/uid_map", f"{_NOBODY} {user} 1")
    _write("/proc/self/gid_map", f"{_NOBODY} {group} 1")
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
    _die_with_parent()
    _change_root(root)


def _change_root(root: str) -> None:
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={DIRECTORY_BYTES}")
    for path in dict.fromkeys((*_SYSTEM, sys.base_prefix)):
        _show(path, root)
    for directory in ("/tmp", "/dev"):  # noqa: S108
        os.makedirs(root + directory, exist_ok=True)
    with open(f"{root}/dev/null", "w"):
        pass
    _mount("/dev/null", f"{root}/dev/null", None, _MS_BIND)
    os.chroot(root)
    os.chdir("/tmp")  # noqa: S108


def _show(path: str, root: str) -> None:
    target = root + path
    if os.path.lexists(target) or not os.path.lexists(path):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    os.mkdir(target)
    _mount(path, target, None, _MS_BIND | _MS_REC)
    attributes = struct.pack("QQQQ", _READ_ONLY | _NO_SETUID, 0, 0, 0)
    done = _libc.syscall(
        _SYS_MOUNT_SETATTR, _AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes))
    )
    _check(done, f"make {path} read-only")


def _limit(seconds: float, memory_mib: int) -> None:
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    limits = {
        resource.RLIMIT_CPU: max(1, round(seconds)),
        resource.RLIMIT_AS: memory_mib * 2**20,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))
    with contextlib.suppress(ValueError, OSError):  # a lower limit holds already
        resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))


def _die_with_parent() -> None:
    _check(_libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0), "parent's death")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    arguments = [None if text is None else text.encode() for text in (source, target, kind, data)]
    done = _libc.mount(*arguments[:3], ctypes.c_ulong(flags), arguments[3])
    _check(done, f"mount {target}")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


if __name__ == "__main__":
    main()
