"""Runs one container: its own mounts, process ids and host name, its command as process 1, its exit status as ours.

`launch.py <fd> <parent>` reads what to run from standard input and writes one JSON line to the file descriptor: the
process id of the command. A second line says why the command could not be started; without one, it has been. It is
run with the standard library alone: containers start often, and imports take most of the time.

The root is an overlay over this machine's, or over an image's own files, with a scratch layer that goes with the
container: whatever the command writes outside its volumes is gone afterwards and never reaches what is below.
"""

# pathlib takes longer to import than all of this.
# ruff: noqa: PTH101, PTH102, PTH103, PTH112, PTH114, PTH115, PTH116, PTH118, PTH120, PTH123, PTH208, PTH211
import contextlib
import ctypes
import json
import os
import select
import signal
import stat
import sys
import warnings  # noqa: F401 - os.execvpe asks for it, when an image's files have taken the place of Python's

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEWNS, _NEWUTS, _NEWUSER, _NEWPID = 0x20000, 0x4000000, 0x10000000, 0x20000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "fuse")
_OWN = ("/proc", "/sys", "/dev")
# Not for containers: mounts of the machine's own services.
_VIRTUAL = frozenset(["autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs",
                      "efivarfs", "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "ramfs", "rpc_pipefs",
                      "securityfs", "squashfs", "sysfs", "tracefs"])  # fmt: skip


class StartError(Exception):
    """The command can't be run, in the words of a container runtime."""


def main() -> None:
    """Start the command, wait for it, and end as it did."""
    told, parent = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(told, False)
    _die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    spec = json.load(sys.stdin)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    _separate()
    alive = os.pidfd_open(os.getpid())
    child = os.fork()
    if child == 0:
        _die_with_parent()
        if select.select([alive], [], [], 0)[0]:
            os._exit(1)
        _become(spec, told, alive)
    os.write(told, json.dumps({"pid": child}).encode() + b"\n")
    os.close(told)
    os._exit(_exit_code(os.waitpid(child, 0)[1]))


def _exit_code(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _die_with_parent() -> None:
    _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _separate() -> None:
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        _call("unshare", _NEWNS | _NEWUTS | _NEWPID)
        return
    _call("unshare", _NEWUSER | _NEWNS | _NEWUTS | _NEWPID)
    for name, line in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(line)


def _become(spec: dict, told: int, alive: int) -> None:  # type: ignore[type-arg]
    """Be the command. Never returns."""
    try:
        os.setsid()
        os.umask(0o022)
        hostname = spec["hostname"].encode()
        _call("sethostname", hostname, len(hostname))
        _enter_root(spec)
        if spec["user"] is not None:
            _be_user(spec["user"])
            if select.select([alive], [], [], 0)[0]:
                os._exit(1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and that would be inherited
            signal.signal(number, signal.SIG_DFL)
        _execute(spec["argv"], spec["env"])
    except BaseException as error:
        reason = "StartError" if isinstance(error, StartError) else "ContainerCannotRun"
        os.write(told, json.dumps({"reason": reason, "message": str(error)}).encode() + b"\n")
    finally:
        os._exit(128)


def _be_user(number: int) -> None:
    """Have the user's rights and no way to others."""
    _call("prctl", 38, *(ctypes.c_ulong(each) for each in (1, 0, 0, 0)))  # PR_SET_NO_NEW_PRIVS
    os.setgroups([])
    os.setgid(number)
    os.setuid(number)
    _die_with_parent()  # forgotten with the change of user


def _execute(argv: list[str], env: dict[str, str]) -> None:
    try:
        os.execvpe(argv[0], argv, env)
    except FileNotFoundError:
        what = f"stat {argv[0]}: no such file or directory" if "/" in argv[0] else "executable file not found in $PATH"
    except PermissionError:
        what = "permission denied"
    except OSError as error:
        what = os.strerror(error.errno or 0).lower()
    raise StartError(f'error during container init: exec: "{argv[0]}": {what}')


def _enter_root(spec: dict) -> None:  # type: ignore[type-arg]
    """Make the overlay the root, with the volumes in their places."""
    scratch = spec["scratch"]
    below = spec["root"]
    mounts = _machine_mounts() if below == "/" else []
    # While they can be reached; opened without following into what is mounted later.
    sources = [os.open(mount["source"], os.O_PATH | os.O_CLOEXEC) for mount in spec["mounts"]]
    shared = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in spec["shared"]]
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount("scratch", scratch, "tmpfs", 0, "mode=755")
    root = f"{scratch}/root"
    os.mkdir(root)
    if _is_first_user() or below != "/":
        layers = ["/"]
        _overlay(below, root, scratch, 0)
        for number, target in enumerate(mounts, 1):
            with contextlib.suppress(OSError):  # a file system that can't be a layer is left out
                _mirror(target, root + target, scratch, str(number))
                layers.append(target)
    else:
        _mount("root", root, "tmpfs", 0, "mode=755")
        layers = ["/", *_mirror_entries("/", root, scratch, "0")]
    _system(root)
    os.chroot(root)
    os.chdir("/")
    opened = [os.open(layer, os.O_PATH | os.O_CLOEXEC) for layer in layers]  # a volume may cover one, as in /tmp
    hidden = [path for path in spec["files"] if any(_lies_in(path, mount["target"]) for mount in spec["mounts"])]
    files = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in hidden]
    for path, source in shared:
        _bind(source, path, read_only=False)
    for mount, source in sorted(
        zip(spec["mounts"], sources, strict=True), key=lambda pair: pair[0]["target"].count("/")
    ):
        _bind(source, mount["target"], read_only=mount["read_only"])
    for path, source in files:
        _bind(source, path, read_only=spec["read_only_root"])
    os.makedirs(spec["cwd"], exist_ok=True)
    os.chdir(spec["cwd"])
    if spec["read_only_root"]:
        for layer in opened:
            path = f"/proc/self/fd/{layer}"
            _mount(None, path, None, _BIND | _REMOUNT | _RDONLY | _kept_flags(path))


def _lies_in(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")


def _machine_mounts() -> list[str]:
    """Where the other file systems of this machine are, outermost first."""
    found = set()
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields, _, rest = line.partition(" - ")
            target, kind = fields.split()[4].encode().decode("unicode_escape"), rest.split()[0]
            if target != "/" and kind not in _VIRTUAL and not f"{target}/".startswith(tuple(f"{own}/" for own in _OWN)):
                found.add(target)
    return sorted(found)


def _mirror(source: str, target: str, scratch: str, number: str) -> list[str]:
    """Show a folder or file of the machine at `target`; returns the layers that this took."""
    if not os.path.isdir(source):
        _touch(target)
        _mount(source, target, None, _BIND)
        return []
    try:
        _overlay(source, target, scratch, number)
    except OSError:
        return _mirror_entries(source, target, scratch, number)
    return [source]


def _mirror_entries(source: str, target: str, scratch: str, number: str) -> list[str]:
    """One by one: without root, a folder with other file systems inside can't be a layer."""
    layers = []
    os.makedirs(target, exist_ok=True)
    for index, name in enumerate(os.listdir(source)):
        path, shown = os.path.join(source, name), os.path.join(target, name)
        with contextlib.suppress(OSError):  # what we may not read isn't there
            if os.path.islink(path):
                os.symlink(os.readlink(path), shown)
            elif path in _OWN:
                os.mkdir(shown)
            elif not path.startswith(scratch):
                layers += _mirror(path, shown, scratch, f"{number}-{index}")
    return layers


def _overlay(lower: str, target: str, scratch: str, number: object) -> None:
    upper, work = f"{scratch}/upper{number}", f"{scratch}/work{number}"
    for folder in (upper, work):
        os.mkdir(folder)
    os.chmod(upper, stat.S_IMODE(os.stat(lower).st_mode))
    os.makedirs(target, exist_ok=True)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    _mount("overlay", target, "overlay", 0, options if _is_first_user() else f"{options},userxattr")


def _is_first_user() -> bool:
    with open("/proc/self/uid_map") as file:
        return file.read().split() == ["0", "0", "4294967295"]


def _system(root: str) -> None:
    """/proc with the container's processes only, /sys, and a /dev of the usual devices and NVIDIA's."""
    try:
        _mount("proc", f"{root}/proc", "proc", _NOSUID | _NODEV | _NOEXEC)
    except OSError:  # inside another container's user namespace
        _mount("/proc", f"{root}/proc", None, _BIND | _REC)
    with contextlib.suppress(OSError):
        _mount("/sys", f"{root}/sys", None, _BIND | _REC)
    dev = f"{root}/dev"
    _mount("dev", dev, "tmpfs", _NOSUID, "mode=755")
    for name in os.listdir("/dev"):
        if (name in _DEVICES or name.startswith("nvidia")) and not os.path.isdir(f"/dev/{name}"):
            _touch(f"{dev}/{name}")
            _mount(f"/dev/{name}", f"{dev}/{name}", None, _BIND)
    for name, mode in (("shm", 0o1777), ("pts", 0o755)):
        os.mkdir(f"{dev}/{name}")
        os.chmod(f"{dev}/{name}", mode)
    _mount("shm", f"{dev}/shm", "tmpfs", _NOSUID | _NODEV | _NOEXEC, "mode=1777,size=64m")
    with contextlib.suppress(OSError):
        _mount("/dev/pts", f"{dev}/pts", None, _BIND)
    links = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
    for name, to in links.items():
        os.symlink(to, f"{dev}/{name}")


def _bind(source: int, target: str, *, read_only: bool) -> None:
    if stat.S_ISDIR(os.fstat(source).st_mode):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        _touch(target)
    _mount(f"/proc/self/fd/{source}", target, None, _BIND | _REC)
    os.close(source)
    if read_only:
        _mount(None, target, None, _BIND | _REMOUNT | _RDONLY | _kept_flags(target))


def _kept_flags(target: str) -> int:
    """Flags that a remount in a user namespace must not drop."""
    return os.statvfs(target).f_flag & (_NOSUID | _NODEV | _NOEXEC)


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666))


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    arguments = (None if text is None else text.encode() for text in (source, target, kind))
    _call("mount", *arguments, ctypes.c_ulong(flags), None if options is None else options.encode())


def _call(name: str, *arguments: object) -> None:
    if getattr(_LIBC, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}", *[str(argument) for argument in arguments[1:2]])


if __name__ == "__main__":
    main()
