"""Files that are there in whole or not at all, also after a power cut, and a lock on a folder. No torch."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

_LONGEST_COMMAND = 200  # characters
_CANNOT_LOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A new file beside `path` to write to. At the end it takes the place of `path`, and both are on disk; when writing fails
    it is removed, and `path` is what it was. Raises OSError."""
    part = path.with_name(f".part-{secrets.token_hex(4)}-{path.name}")
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
    try:
        yield part
        sync(part)
        os.replace(part, path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`path` holds `text` afterwards, or what it held before. Raises OSError."""
    with whole_file(path) as part:
        part.write_text(text)


def sync(path: Path) -> None:
    """The file's content, or the folder's names, are on disk afterwards. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """All files and folders in `folder`, and its own name. Raises OSError."""
    for inside, _, files in os.walk(folder, topdown=False):
        for path in (*(Path(inside, name) for name in files), Path(inside)):
            sync(path)
    sync(folder.parent)


def make_folder(path: Path) -> None:
    """`path` and its parents exist on disk afterwards. Raises OSError."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def read_json(path: Path):
    """What the file of JSON holds; None where there is none, or it is damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return json.loads(path.read_text())
    return None


def remove(path: Path) -> None:
    """Nothing is at `path` afterwards; of a link, what it points to stays. Raises OSError."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    elif path.exists():
        shutil.rmtree(path)


# ---- the lock ------------------------------------------------------------------------------------


class InUse(ValueError):
    """Another process works in the folder."""


class Lock:
    """A lock of the kernel on a folder: free once its holder is gone, however it ends, and without a file. Several may share it.

    It goes with close(), or with the process. Where the file system has none, a warning says so and nothing is locked.
    Thread: one.
    """

    def __init__(self, folder: Path, shared: bool = False):
        """Raises InUse, which names the holder, when that does not go together with another's."""
        self._folder = folder
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._take(shared)
        except BaseException:
            self.close()
            raise

    def share(self) -> None:
        """From now on others may share it. Raises InUse when one took it in between."""
        self._take(shared=True)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _take(self, shared: bool) -> None:
        try:
            fcntl.flock(self._descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"{self._folder}: in use by {self._holder()}; wait for its end, or end it") from None
        except OSError as error:
            if error.errno not in _CANNOT_LOCK:
                raise
            print(
                f"warning: {self._folder}: its file system has no locks ({error.strerror}):", end=" ", file=sys.stderr
            )
            print("nothing keeps two runs apart there", file=sys.stderr)

    def _holder(self) -> str:
        """What proc(5) says of it: the lines of /proc/locks are number, kind, mode, type, process, device:inode, range."""
        status = os.fstat(self._descriptor)
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        lines = (line.split() for line in Path("/proc/locks").read_text().splitlines())
        pids = [words[4] for words in lines if place in words and words[4] not in ("0", "-1", str(os.getpid()))]
        for pid in pids:
            with contextlib.suppress(OSError):
                words = Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()
                return f"process {pid} ({' '.join(words)[:_LONGEST_COMMAND]})"
        return "a process of another machine or container"
