"""Files that survive a crash: atomic writes, a manifest of checksums, resumable JSON lines; and the progress bar.

What is made here may hold data of patients: only its owner may read it (0600, folders 0700), whatever the umask.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import stat
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

from clinkd import distributed
from clinkd.records import BadInput

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
MANIFEST = "manifest.json"
MOST_BYTES = 10**12  # of a file in a manifest
DIFFERS = "damaged (its checksum differs)"
LOG_SECONDS = 10.0  # between two lines of progress without a terminal
WIDE = 120  # columns of a screen with room for a long bar
GAP = "  "  # between two facts of a line of progress
RATE_SECONDS = 30.0  # window of the rate, so that it shows the present speed
_COUNTED = 256  # items between two updates of a progress bar
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn "no space left" (also a quota, a file-size limit) inside the block into a BadInput that names `path`."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else _read_error_number(error)
        if number not in _NO_ROOM:
            raise
        raise BadInput(
            f"{path}: no room left to write ({os.strerror(number)}); "
            "free some space, or choose another folder, then give the same command to go on"
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, if they are missing. Raises BadInput on a full disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        with naming_full_disk(folder):
            folder.mkdir(0o700, exist_ok=True)


def open_private(path: str, flags: int) -> int:
    """An opener for `open`: what it makes only its owner may read."""
    return os.open(path, flags, 0o600)


def find_readers(secret: Path) -> str | None:
    """A caution where every user of this machine can read a file with a secret; None where only some can."""
    if secret.stat().st_mode & stat.S_IROTH:
        return f"{secret}: every user of this machine can read it; chmod 600 {shlex.quote(str(secret))}"
    return None


def _read_error_number(error: Exception) -> int | None:
    """The system's error number, from the message of a library such as safetensors."""
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which replaces `path` at the end of the block: whole, or not at all.

    Only its owner may read it, from the beginning, whoever could read the file before. Missing parent folders are made.
    Raises BadInput on a full disk, with nothing left behind, and if `path` is no plain file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise BadInput(f"{path}: is {'a folder' if path.is_dir() else 'no plain file'}; name a file")
    temp = path.with_name(f".{path.name}.clinkd-{os.getpid()}.tmp")
    with naming_full_disk(path):
        make_folder(path.parent)
        _clear_drafts_once(path.parent.absolute())
        try:
            temp.unlink(missing_ok=True)
            with _open_locked(temp) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temp.replace(path)
        except BaseException as error:
            with contextlib.suppress(OSError):  # which would hide the first
                temp.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename in (temp, os.fspath(temp)):
                error.filename = os.fspath(path)  # the other name says nothing to the user
            raise
        sync_folder(path.parent)


def _open_locked(temp: Path) -> IO[bytes]:
    """A new file, locked until it is closed."""
    while True:
        file = open(temp, "xb", opener=open_private)  # noqa: SIM115
        _lock(file.fileno())
        if temp.exists():
            return file
        file.close()  # `clear_drafts` of another process met it before it was locked


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) by `replacing`: a crash leaves the old file or the new one, never a part.

    Halves of characters, which names of files may hold, are written as an escape that JSON reads back.
    """
    with replacing(path) as file:
        file.write(_bytes(content))


def _bytes(content: str | bytes) -> bytes:
    return content.encode(errors="backslashreplace") if isinstance(content, str) else content


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON by `write_atomic`. NaN and infinity are refused: other readers cannot read it."""
    write_atomic(path, _json_bytes(value))


def _json_bytes(value: Any) -> bytes:
    return _bytes(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises BadInput if the file is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); bring back a good copy") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not valid JSON ({error}); remove it, or bring back a good copy") from None


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """In the block no other thread or process that asks is in a block for this folder: they wait."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # of this opening: it holds against other threads, too
        yield
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the system write the folder's own entries (new names, renames) to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make the system write a folder and all in and below it to the disk. Only its owner may then read it, also what
    libraries wrote by the umask."""
    for path in (*sorted(folder.rglob("*")), folder):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o600)
            _sync_file(path)
        elif path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
            sync_folder(path)


def publish(draft: Path, final: Path, synced: bool = False) -> None:
    """Rename a finished draft folder, on the same file system, so that `final` exists whole or not at all. `synced`:
    its files are on the disk."""
    if not synced:
        sync_tree(draft)
    draft.rename(final)
    sync_folder(final.parent)


def first_free(wanted: str, folder: Path = Path(), suffix: str = "") -> Path:
    """A name in a folder that nothing has yet: the wanted one, or that with the next free number."""
    names = (f"{wanted}-{number}" if number > 1 else wanted for number in count(1))
    return next(path for name in names if not (path := folder / f"{name}{suffix}").exists())


def demand_empty(folder: Path) -> None:
    """Raises BadInput if `folder` exists and is not empty, or is no folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder}: exists and is not empty; choose a new folder")


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A draft folder to fill, which becomes `final` at the end of the block: whole, or not at all.

    Raises BadInput as `demand_empty`, and on a full disk.
    """
    demand_empty(final)
    with naming_full_disk(final), draft_folder(final) as draft:
        yield draft
        if final.is_dir():
            final.rmdir()
        publish(draft, final)


@contextlib.contextmanager
def draft_folder(final: Path) -> Iterator[Path]:
    """A hidden folder beside `final`, locked while this process lives; removed after the block if it is still there.

    Drafts of processes that have ended are removed before.
    """
    try:
        make_folder(final.parent)
        clear_drafts(final.parent)
        draft, descriptor = _make_locked_folder(final)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(final)) from None  # not the name of the draft
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(descriptor)


def _make_locked_folder(final: Path) -> tuple[Path, int]:
    """A new draft of a folder, locked until the returned descriptor is closed."""
    while True:
        draft = Path(tempfile.mkdtemp(prefix=f".{final.name}.clinkd-", suffix=".part", dir=final.parent))
        with contextlib.suppress(FileNotFoundError):  # as in `_open_locked`
            descriptor = os.open(draft, os.O_RDONLY)
            _lock(descriptor)
            if draft.exists():
                return draft, descriptor
            os.close(descriptor)


def clear_drafts(folder: Path) -> None:
    """Remove the drafts in a folder whose processes have ended, and print how many.

    A process locks its drafts: the system frees the lock at its end, however it ends, so that no number of a process
    can be mistaken for another's. Where a file system has no locks, nothing is removed.
    """
    drafts = [p for p in folder.glob(".*.clinkd-*") if p.suffix in (".part", ".tmp")]
    if dead := sum(map(_remove_dead, drafts)):
        print(f"clinkd: {folder}: removed {dead} unfinished drafts of commands that were killed", file=sys.stderr)


@functools.cache
def _clear_drafts_once(folder: Path) -> None:
    """`clear_drafts`, once a process: a large folder takes long to list."""
    clear_drafts(folder)


def _remove_dead(draft: Path) -> bool:
    try:
        descriptor = os.open(draft, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False  # it has gone meanwhile, or is of another user
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(draft) if draft.is_dir() else draft.unlink()
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock an open draft until it is closed, after whoever looks whether it is dead; not where there are no locks."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Checksum and size of one file. Raises ValueError for what can be none."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # pydantic itself is slow to import
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.sha256) or type(self.bytes) is not int:
            raise ValueError(f"no checksum, or no size: {self.sha256!r}, {self.bytes!r}")
        if not 0 <= self.bytes <= MOST_BYTES:
            raise ValueError(f"no size of a file: {self.bytes}")


def digest_file(source: Path | bytes) -> FileDigest:
    """Checksum and size of a file, or of bytes."""
    if isinstance(source, bytes):
        return FileDigest(sha256=hashlib.sha256(source).hexdigest(), bytes=len(source))
    return FileDigest(sha256=sha256_file(source), bytes=source.stat().st_size)


def is_plain_path(name: str) -> bool:
    """Whether a path that a file names is a plain one below a folder, in its shortest spelling."""
    path = PurePosixPath(name)
    return path.as_posix() == name and not path.is_absolute() and ".." not in path.parts and name.isprintable()


def find_change(path: Path, size: int, sha256: str | None = None) -> str | None:
    """How a file differs from its size in bytes and its checksum; None if it does not. Without `sha256`, the file is
    not read."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder"}
        return f"{kinds.get(stat.S_IFMT(status.st_mode), 'no plain file')}, where a file was"
    if status.st_size != size:
        return f"{status.st_size} bytes instead of {size}"
    return DIFFERS if sha256 is not None and sha256_file(path) != sha256 else None


class Manifest:
    """Checksums of all files of a folder, written last: a folder whose manifest verifies is whole."""

    @staticmethod
    def write(folder: Path, files: Iterable[Path] | None = None) -> None:
        """Put every file of `folder` on the disk, then write `manifest.json` with its SHA-256 and size in bytes; or for
        those of `files`, which are on the disk. Checksums that a folder below has in a manifest of its own are taken
        from there."""
        digests: dict[str, FileDigest] = {}
        for below in folder.glob(f"*/**/{MANIFEST}"):
            place = below.parent.relative_to(folder)
            digests |= {str(place / name): d for name, d in Manifest.read(below.parent).items()}
        listed = {}
        for path in _list_files(folder) if files is None else files:
            if files is None:
                _sync_file(path)
            name = path.relative_to(folder).as_posix()
            listed[name] = digests.get(name) or digest_file(path)
        write_atomic(folder / MANIFEST, Manifest.encode(listed))

    @staticmethod
    def encode(listed: Mapping[str, FileDigest]) -> bytes:
        """The bytes of a manifest of these files."""
        return _json_bytes({"files": {name: asdict(digest) for name, digest in listed.items()}})

    @staticmethod
    def read(folder: Path, owner: Path | None = None) -> dict[str, FileDigest]:
        """Checksum and size of each file by a folder's manifest. Raises BadInput if that is missing or was changed.

        `owner`: what to remove then, if that is more than `folder`.
        """
        path, owner = folder / MANIFEST, owner or folder
        if not path.is_file() or path.is_symlink():
            raise BadInput(f"{folder}: no {MANIFEST}, so it was never finished; remove {owner} to make it anew")
        try:
            content = path.read_bytes()
            listed = {name: FileDigest(**entry) for name, entry in json.loads(content)["files"].items()}
            whole = content == Manifest.encode(listed)  # white space, too: if it was changed, more may have changed
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            whole = False
        if not whole or not all(map(is_plain_path, listed)):
            raise BadInput(f"{path}: damaged; remove {owner} to make it anew")
        return listed

    @staticmethod
    def verify(folder: Path, owner: Path | None = None) -> None:
        """Raises BadInput naming the first file that is missing, cut, changed or unknown to the manifest; `owner` as in
        `read`."""
        listed = Manifest.read(folder, owner)
        for name, digest in listed.items():
            if change := find_change(folder / name, digest.bytes, digest.sha256):
                raise BadInput(f"{folder / name}: {change}; remove {owner or folder} to make it anew")
        for path in _list_files(folder):
            if path.relative_to(folder).as_posix() not in listed:
                raise BadInput(f"{path}: not in {MANIFEST}; remove the file")


def _list_files(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != MANIFEST and p.suffix != ".tmp"]


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write JSON objects, one a line, all or none. Raises BadInput on a full disk."""
    write_atomic(path, "".join(json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n" for r in records))


class JsonLines:
    """A file of JSON objects, one a line, that is appended to and read back after a crash.

    Each record is flushed whole. A crash can only break the last line: `read` drops it, and the next `append` cuts it
    away. A broken line elsewhere raises BadInput naming the line.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, record: dict[str, Any]) -> None:
        """Write one record. Raises BadInput on a full disk, and cuts away the part of the record that was written."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False)
        try:
            data = f"{line}\n".encode()
        except UnicodeEncodeError:  # a lone surrogate, as broken byte sequences of a generated text may give
            data = f"{json.dumps(record, allow_nan=False)}\n".encode()
        with naming_full_disk(self.path):
            file = self._file or self._open()
            end = file.tell()
            try:
                written = 0
                while written < len(data):  # an unbuffered write may take a part, and fail only on the next
                    written += file.write(data[written:])
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                file.close()
                self._file = None
                raise

    def read(self) -> Iterator[dict[str, Any]]:
        """The whole records as of now, in order; nothing where the file does not exist."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            # what is appended meanwhile is not followed, or this might never end
            yield from parse_lines(_take(file, os.fstat(file.fileno()).st_size), self.path)

    def ids(self) -> set[str]:
        """The "id" of every whole record: these need not be done again."""
        return {record["id"] for record in self.read()}

    def close(self) -> None:
        """Write the file to the disk and close it; a later `append` opens it again."""
        if self._file is not None:
            file, self._file = self._file, None
            with naming_full_disk(self.path), file:
                os.fsync(file.fileno())

    def _open(self) -> IO[bytes]:
        make_folder(self.path.parent)
        # unbuffered: a write that failed must not be tried again at close
        mode = "r+b" if self.path.exists() else "w+b"
        file = open(self.path, mode, buffering=0, opener=open_private)  # noqa: SIM115
        try:
            _cut_broken_line(file)
        except BaseException:
            file.close()
            raise
        self._file = file
        return file


def _cut_broken_line(file: IO[bytes]) -> None:
    """Cut away a broken last line, and go to the end of the file."""
    size = file.seek(0, os.SEEK_END)
    start, tail = size, b""
    while start > 0 and b"\n" not in tail:
        end, start = start, max(0, start - 65536)
        file.seek(start)
        tail = file.read(end - start) + tail
    last = tail[tail.rfind(b"\n") + 1 :]
    if last and _parse_object(last) is None:
        file.truncate(size - len(last))
    file.seek(0, os.SEEK_END)
    if last and _parse_object(last) is not None:
        file.write(b"\n")


def _take(file: IO[bytes], size: int) -> Iterator[bytes]:
    """The lines of a file that begin in its first `size` bytes."""
    for line in file:
        if size <= 0:
            return
        size -= len(line)
        yield line


def parse_lines(lines: Iterable[bytes], path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of lines; the last line may be torn. `path`: where they are from, for errors."""
    for number, line in enumerate(lines, start=1):
        record = _parse_object(line)
        if record is not None:
            yield record
        elif not line.endswith(b"\n"):
            return  # torn by a crash, or being written at this moment
        elif line.strip():
            text = repr(line[:60].decode(errors="replace"))
            raise BadInput(f"{path}, line {number}: not a JSON object: {text}; mend or remove the line")


def _parse_object(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line. A part of an object is never an object itself, so a line that parses is whole."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# ---- texts of others, printed or in a spreadsheet -------------------------------------------------------------------

# control characters (a terminal obeys them) and changes of the direction of text, but not line ends and tabs; marks
# that Hebrew, Persian or Hindi needs stay
_CONTROLS = re.compile("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]|\r(?!\n)")
_FORMULA = re.compile("'*[=+@\t\r-]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def visible(text: str) -> str:
    """The text with its control characters as escapes, such as \\x1b, so that no terminal obeys them."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class VisibleStream:
    """A stream that texts reach by `visible`; `ungated` is the stream itself, for colours, bars and data of ours."""

    def __init__(self, stream: Any) -> None:
        self.ungated = stream

    def write(self, text: str) -> int:
        self.ungated.write(visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ungated, name)


def ungated(stream: Any) -> Any:
    """The stream under a `VisibleStream`."""
    return getattr(stream, "ungated", stream)


def write_csv(file: Any, rows: Iterable[Iterable[object]], line_end: str = "\r\n", separator: str = ",") -> None:
    """Write rows as CSV. A text that a spreadsheet would compute gets a ' before it, which `read_cell` takes away."""
    csv.writer(ungated(file), lineterminator=line_end, delimiter=separator).writerows(
        map(_quote_cell, row) for row in rows
    )


def _quote_cell(cell: object) -> object:
    is_formula = isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if is_formula else cell


def read_cell(text: str) -> str:
    """The text of a cell that `write_csv` wrote."""
    return text[1:] if text[:1] == "'" and _FORMULA.match(text) else text


class Advance(Protocol):
    """Add `n` done units to a progress bar, with figures to show beside it, such as loss=0.31."""

    def __call__(self, n: int = 1, **shown: float | str) -> None: ...


@contextlib.contextmanager
def progress(total: int | None, title: str, unit: str = "it", done: int = 0) -> Iterator[Advance]:
    """A bar with rate and time left on stderr. If stderr is no terminal: a line every ten seconds and one at the end.

    `total` None: the number is not known before the end. `done` of `total` were finished by an earlier attempt and do
    not count in the rate. Bars may be nested. Of several processes only the main one prints.
    """
    if not distributed.is_main():
        yield lambda n=1, **shown: None
        return
    title = visible(title)
    on_screen = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    with (_bar if on_screen else _lines)(total, title, unit, done) as advance:
        yield advance


def count_progress(items: Iterable[T], title: str, unit: str) -> Iterator[T]:
    """Yield the items, while a progress bar counts them."""
    with progress(None, title, unit) as advance:
        number = 0
        for number, item in enumerate(items, start=1):
            yield item
            if number % _COUNTED == 0:
                advance(_COUNTED)
        advance(number % _COUNTED)


class _Pace:
    """What is done, how fast it goes (by the last half minute), and how long it still takes, in numbers and words."""

    def __init__(self, total: int | None, unit: str, done: int) -> None:
        self.total, self.unit, self.done, self.first = total, unit, done, done
        self.start = time.monotonic()
        self.marks = deque([(self.start, done)])

    def add(self, n: int) -> None:
        self.done += n
        now = time.monotonic()
        if now - self.marks[-1][0] >= 0.5:
            self.marks.append((now, self.done))
        while len(self.marks) > 2 and now - self.marks[0][0] > RATE_SECONDS:
            self.marks.popleft()

    def rate(self, start: float, first: int) -> float | None:
        """Units a second since `start`, when `first` were done; None before the first unit."""
        seconds = time.monotonic() - start
        return (self.done - first) / seconds if seconds > 0 and self.done > first else None

    def spell_done(self) -> str:
        """As "3/12 images", or "3 rows" if the total is not known."""
        return f"{self.done}/{self.total} {self.unit}" if self.total is not None else f"{self.done} {self.unit}"

    def spell_rate(self) -> str:
        return spell_rate(self.rate(*self.marks[0]), self.unit)

    def spell_left(self) -> str:
        if self.total is None:
            return ""
        rate = self.rate(*self.marks[0])
        return f"{spell_seconds(max(0, self.total - self.done) / rate)} left" if rate else "time left unknown"


def spell_rate(rate: float | None, unit: str) -> str:
    """A rate in words: "3.2 it/s", or "4.1 s/it" if it is slow."""
    if rate is None:
        return f"- {unit}/s"
    return f"{rate:,.1f} {unit}/s" if rate >= 1 else f"{1 / rate:.1f} s/{unit}"


def spell_seconds(seconds: float) -> str:
    """A duration in words: "8.1 s", "4 min 05 s", "2 h 10 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def cache_folder() -> Path:
    """The folder for what can be made or fetched again, for all runs: CLINKD_CACHE, else clinkd in the user's cache."""
    if folder := os.environ.get("CLINKD_CACHE"):
        return Path(folder).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "clinkd"


def nearest_existing(path: Path) -> Path:
    """The path if it exists, else the nearest folder above it that does."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def free_bytes(path: Path) -> int:
    """Free bytes on the disk of a path, which need not exist yet."""
    return shutil.disk_usage(nearest_existing(path)).free


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in and below a folder, without what links lead to; 0 if it does not exist. A file that is
    removed meanwhile does not count."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(os.path.join(parent, name))
                total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def spell_bytes(megabytes: float) -> str:
    """Megabytes in words: "310 MB", "4.1 GB"."""
    return f"{megabytes / 1000:,.1f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"


def _spell(shown: dict[str, float | str]) -> str:
    return visible(GAP.join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()))


@contextlib.contextmanager
def _lines(total: int | None, title: str, unit: str, done: int) -> Iterator[Advance]:
    pace, last, latest = _Pace(total, unit, done), time.monotonic(), ""

    def print_line(*parts: str) -> None:
        print("  ".join(filter(None, (*parts, latest))), file=sys.stderr, flush=True)

    def advance(n: int = 1, **shown: float | str) -> None:
        nonlocal last, latest
        pace.add(n)
        latest = _spell(shown) or latest
        if time.monotonic() - last >= LOG_SECONDS:
            last = time.monotonic()
            print_line(f"{title}: {pace.spell_done()}", pace.spell_rate(), pace.spell_left())

    try:
        yield advance
    except (KeyboardInterrupt, SystemExit):
        print_line(f"{title}: {pace.spell_done()}, stopped")
        raise
    took = spell_seconds(time.monotonic() - pace.start)
    print_line(f"{title}: {pace.spell_done()} in {took}", spell_rate(pace.rate(pace.start, pace.first), unit))


# the terminal has one live area: an inner bar becomes a row of the outer one
_OUTER_BAR: ContextVar[Progress | None] = ContextVar("_OUTER_BAR", default=None)


@contextlib.contextmanager
def _bar(total: int | None, title: str, unit: str, done: int) -> Iterator[Advance]:
    outer = _OUTER_BAR.get()
    screen = outer or _new_screen()
    pace = _Pace(total, unit, done)
    task = screen.add_task(title, total=total, completed=done, far=pace.spell_done(), shown="", rate="", left="")

    def advance(n: int = 1, **shown: float | str) -> None:
        pace.add(n)
        screen.update(task, advance=n, far=pace.spell_done(), rate=pace.spell_rate(), left=pace.spell_left())
        if shown:
            screen.update(task, shown=_spell(shown))

    if outer is not None:
        try:
            yield advance
        finally:
            screen.remove_task(task)
        return
    with screen:
        _OUTER_BAR.set(screen)
        try:
            yield advance
        finally:
            _OUTER_BAR.set(None)
            screen.update(task, left=f"took {spell_seconds(time.monotonic() - pace.start)}")


def _new_screen() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    console = Console(file=ungated(sys.stderr))
    bar = BarColumn(bar_width=24 if console.width >= WIDE else 8)

    class BarFacts(ProgressColumn):
        """What there is to say beside the bar: the first of it that fits, nothing cut in the middle."""

        def render(self, task: Task) -> Text:
            parts = [str(task.fields[name]) for name in ("far", "left", "rate")]
            parts += str(task.fields["shown"]).split(GAP)
            room = console.width - len(task.description) - (bar.bar_width or 0) - 3
            return Text(join_what_fits(parts, room), no_wrap=True)

    return Progress(
        TextColumn("{task.description}", markup=False), bar, BarFacts(), console=console, refresh_per_second=5
    )


def join_what_fits(parts: Iterable[str], room: int) -> str:
    """The first parts that have room in a line, each whole; empty ones are left out."""
    line = ""
    for part in filter(None, parts):
        longer = f"{line}{GAP}{part}" if line else part
        if len(longer) > room:
            break
        line = longer
    return line
