"""A finished run as one file to carry away, and such a file as a run again. Imports no torch.

The file is a tar without compression, so that nothing in it can grow: its first member is the manifest, then come the
files of the run (`run/`) and of its stages (`.stages/`), each named in the manifest with its size and SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import json
import mimetypes
import os
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from clinkd.config import FolderName
from clinkd.pipeline.damage import RECORD, STAGE_FOLDER, has_checksums, refuse_damage
from clinkd.pipeline.graph import CACHE, STRIPPED, is_at_work, point_link
from clinkd.pipeline.report import report
from clinkd.pipeline.runs import EXAMPLES, REPORT, RUN_RECORD, Run, finish_run, open_run, rename_run
from clinkd.records import BadInput
from clinkd.storage import (
    DIFFERS,
    MOST_BYTES,
    FileDigest,
    Manifest,
    clear_drafts,
    digest_file,
    draft_folder,
    free_bytes,
    is_plain_path,
    make_folder,
    naming_full_disk,
    progress,
    publish,
    read_json,
    replacing,
    sha256_file,
    spell_bytes,
)
from clinkd.storage import MANIFEST as STAGE_MANIFEST
from clinkd.version import __version__

MANIFEST = "clinkd-run.json"
RUN = "run"  # the folder of the run in the file
MOST_FILES = 100_000
MOST_HEADER_BYTES = 1 << 26  # of the manifest, and of any header that tarfile reads at once
_SEEN = ("see", "eyes")  # the stages of features of all images
_RULES = ConfigDict(frozen=True, extra="forbid", strict=True)


class PackManifest(BaseModel):
    """The first member of the file: what it holds.

    `images`: whether image files, pages with pictures or features of images are inside; `words`: whether questions,
    answers and corrections are; `patients`: whether the data are of patients, not drawn. `links`: stages that stand for
    others of a later version, by name. `files`: by path in the file.
    """

    model_config = _RULES
    clinkd: Literal["packed run"] = "packed run"
    form: Literal[1] = 1
    version: str = __version__
    name: FolderName
    images: bool
    words: bool = True
    patients: bool
    links: dict[str, str]
    files: dict[str, FileDigest]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files.values())


# ---- packing --------------------------------------------------------------------------------------------------------


def pack_run(run: Run, out: Path, images: bool = True) -> PackManifest:
    """Write a finished run into the new file `out`, which only its owner may read, from its creation on.

    Without `images`, image files and features of images are left out, and the page is the one without pixels and words.
    Stages that are changed by this get another identity, so that nobody takes them for whole ones.

    Raises BadInput if `out` exists, or the run is unfinished or damaged.
    """
    if os.path.lexists(out):
        raise BadInput(f"{out}: is there already; name a new file")
    if not out.parent.is_dir():
        raise BadInput(f"{out}: {out.parent} is no folder; choose another place")
    run.demand_whole()
    stages = {stage["name"]: run.stage(stage["name"]) for stage in run.stages}
    contents, links = _collect(run, stages) if images else (_collect_without_images(run, stages), {})
    recorded = _read_recorded(stages.values())
    with progress(2 * len(contents), "pack", "files") as advance:
        files = {}
        for name, source in contents.items():
            files[name] = digest_file(source)
            if isinstance(source, Path) and source in recorded and recorded[source].digest != files[name]:
                raise refuse_damage(recorded[source].stage, f"{source}: {DIFFERS}")
            advance(1)
        pictured = images and any(map(_shows_images, map(PurePosixPath, contents)))
        patients = run.config.data.path is not None
        manifest = PackManifest(name=run.folder.name, images=pictured, patients=patients, links=links, files=files)
        with replacing(out) as file:
            with tarfile.open(fileobj=file, mode="w") as tar:
                _add(tar, MANIFEST, manifest.model_dump_json(indent=1).encode())
                for name, source in contents.items():
                    _add(tar, name, source)
                    advance(1)
            if os.path.lexists(out):
                raise BadInput(f"{out}: was made meanwhile; name a new file")
    return manifest


_Contents = dict[str, Path | bytes]  # by path in the file


def _collect(run: Run, stages: Mapping[str, Path]) -> tuple[_Contents, dict[str, str]]:
    """All files of a run, and its links from stages to those of an older version."""
    contents: _Contents = {f"{RUN}/{name}": path for name, path in _list_files(run.folder)}
    for folder in stages.values():
        contents |= {f"{CACHE}/{folder.resolve().name}/{name}": path for name, path in _list_files(folder.resolve())}
    return contents, {f.name: f.resolve().name for f in stages.values() if f.resolve().name != f.name}


def _collect_without_images(run: Run, stages: Mapping[str, Path]) -> _Contents:
    contents: _Contents = {
        f"{RUN}/{n}": path for n, path in _list_files(run.folder) if not _shows_images(PurePosixPath(RUN, n))
    }
    identities = {stage["name"]: str(stage["identity"]) for stage in run.stages}
    for stage, folder in stages.items():
        files = dict(_list_files(folder.resolve()))
        kept = {n: p for n, p in files.items() if not _shows_images(PurePosixPath(CACHE, folder.name, n))}
        changed: _Contents = {}
        if len(kept) < len(files):
            identities[stage] = hashlib.sha256(f"{identities[stage]} without images".encode()).hexdigest()[:12]
        if len(kept) < len(files) or folder.is_symlink():
            record = _record_without(read_json(files[RECORD]), identities[stage], kept, len(kept) < len(files))
            changed[RECORD] = record
            if has_checksums(folder):
                listed = {n: digest for n, digest in Manifest.read(folder).items() if n in kept}
                changed[STAGE_MANIFEST] = Manifest.encode({**listed, RECORD: digest_file(record)})
        if REPORT in files:
            changed[REPORT] = _render_shared_page(run)
        contents |= {f"{CACHE}/{stage}-{identities[stage]}/{n}": source for n, source in {**kept, **changed}.items()}
    record = read_json(run.folder / RUN_RECORD)
    for described in record["stages"]:
        described["identity"] = identities[described["name"]]
        described["needs"] = {need: identities[need] for need in described["needs"]}
    return {**contents, f"{RUN}/{RUN_RECORD}": json.dumps(record, indent=1).encode()}


def _record_without(record: dict[str, Any], identity: str, kept: Mapping[str, Path], stripped: bool) -> bytes:
    """The `stage.json` of a stage with the files that are kept; `stripped`: it had others."""
    if isinstance(files := record.get("files"), dict):  # sizes, of an older version
        record = {**record, "files": {name: size for name, size in files.items() if name in kept}}
    return json.dumps({**record, "identity": identity, **({STRIPPED: True} if stripped else {})}).encode()


class _Recorded(NamedTuple):
    """A stage, and what it recorded of a file."""

    stage: Path
    digest: FileDigest


def _read_recorded(stages: Iterable[Path]) -> dict[Path, _Recorded]:
    """What the stages recorded of their files."""
    return {
        folder.resolve() / name: _Recorded(folder, digest)
        for folder in filter(has_checksums, stages)
        for name, digest in Manifest.read(folder).items()
    }


def _render_shared_page(run: Run) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return report(run, Path(folder) / REPORT, share=True).read_bytes()


def _list_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files in and below a folder, without links and drafts, by their path in it."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.suffix != ".tmp":
            yield path.relative_to(folder).as_posix(), path


def _shows_images(path: PurePosixPath) -> bool:
    """Whether a file of a packed run is an image, a page with pictures, a table of images, or features of images."""
    kind = mimetypes.guess_type(path.name)[0] or ""
    of_features = path.parts[1].startswith(tuple(f"{stage}-" for stage in _SEEN)) and path.name != RECORD
    return kind.startswith("image/") or path.suffix == ".html" or path.parts[1] == EXAMPLES or of_features


def _add(tar: tarfile.TarFile, name: str, source: Path | bytes) -> None:
    member = tarfile.TarInfo(name)
    member.mode = 0o600
    if isinstance(source, bytes):
        member.size, member.mtime = len(source), int(time.time())
        tar.addfile(member, io.BytesIO(source))
        return
    with source.open("rb") as file:
        status = os.fstat(file.fileno())
        member.size, member.mtime = status.st_size, int(status.st_mtime)
        tar.addfile(member, file)


# ---- opening --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenedRun:
    """A run that was made of a file, what the file said, and how many of its stages were there before."""

    run: Run
    manifest: PackManifest
    reused: int


def open_pack(file: Path, runs: Path, name: str | None = None) -> OpenedRun:
    """Make a packed run a run under `runs` again, whole or not at all; `name`: instead of its own.

    Stages that are there already are used as they are. Raises BadInput if the file is no packed run, is damaged, holds
    anything that its manifest does not name, or is too large; if there is a run of that name; or if a stage that is
    there is damaged or being made.
    """
    if not file.is_file():
        raise BadInput(f"{file}: no such file")
    with (
        naming_full_disk(runs),
        _refusing_damage(file),
        _CappedFile(file) as content,
        tarfile.open(fileobj=content, mode="r:") as tar,
    ):
        manifest = _read_manifest(tar, file)
        folder = runs / _check_name(name or manifest.name)
        if os.path.lexists(folder):
            clear_drafts(runs)  # of a command that opened this run and was killed before it removed its draft
            raise BadInput(f"{folder}: is there already; --name NEW opens the run under another name")
        _demand_room(manifest, file, runs)
        with draft_folder(folder) as draft:
            _extract(tar, manifest, draft)
            try:
                _complete(draft, manifest, folder.name)
            except BadInput as error:
                if isinstance(error.__cause__, OSError):  # a full disk is no fault of the file
                    raise
                raise tarfile.ReadError("its run cannot be read") from None
            reused = _publish(draft, folder, manifest)
    return OpenedRun(open_run(folder), manifest, reused)


class _CappedFile(io.FileIO):
    """A file of which a header, whatever size it claims, cannot fill the memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


@contextmanager
def _refusing_damage(file: Path) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    # a record in it may be any JSON, and a header any bytes
    except (
        tarfile.TarError,
        ValueError,
        TypeError,
        ArithmeticError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as error:
        why = " ".join(str(error).split())[:200]
        raise BadInput(f"{file}: no packed run, or a damaged one ({why}); nothing was opened") from None


def _read_manifest(tar: tarfile.TarFile, file: Path) -> PackManifest:
    first = tar.next()
    content = tar.extractfile(first) if first and first.name == MANIFEST and _is_plain(first) else None
    if first is None or content is None or first.size > MOST_HEADER_BYTES:
        raise BadInput(f"{file}: no packed run: {MANIFEST} is not its first member; `clinkd runs pack` makes one")
    try:
        manifest = PackManifest.model_validate_json(content.read())
    except ValidationError as error:
        first_error = error.errors()[0]
        place = ".".join(map(str, first_error["loc"]))
        raise BadInput(f"{file}: {MANIFEST}: {place}: {first_error['msg']}; nothing was opened") from None
    stages = {PurePosixPath(name).parts[1] for name in manifest.files if name.startswith(f"{CACHE}/")}
    wrong = next((name for name in manifest.files if not _is_safe(name)), None) or next(
        (key for key, to in manifest.links.items() if not STAGE_FOLDER.fullmatch(key) or to not in stages), None
    )
    if wrong is not None:
        raise BadInput(f"{file}: {MANIFEST} names {wrong!r}, which is no place in a run; nothing was opened")
    if len(manifest.files) > MOST_FILES:
        raise BadInput(f"{file}: {len(manifest.files):,} files; a packed run has {MOST_FILES:,} at most")
    return manifest


def _is_plain(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file with all its bytes in the archive: no link, device, folder or sparse file."""
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()


def _is_safe(name: str) -> bool:
    """Whether a path in the file lies in the run or in a stage. Links of the run are made here, not taken."""
    path = PurePosixPath(name)
    if not is_plain_path(name):
        return False
    if path.parts[0] == RUN:
        return len(path.parts) > 1 and path.parts[1] != "stages"
    return path.parts[0] == CACHE and len(path.parts) > 2 and bool(STAGE_FOLDER.fullmatch(path.parts[1]))


def _check_name(name: str) -> str:
    try:
        return str(TypeAdapter(FolderName).validate_python(name))
    except ValidationError:
        raise BadInput(f"--name {name}: letters, digits and . _ - are wanted, a letter or digit first") from None


def _demand_room(manifest: PackManifest, file: Path, runs: Path) -> None:
    """The bytes that are claimed must be in the file, and find room on the disk."""
    size, present = manifest.size, file.stat().st_size
    if size > min(MOST_BYTES, present):
        most = f"the file has {present:,}" if present < MOST_BYTES else f"{MOST_BYTES:,} are the most"
        raise BadInput(f"{file}: cut or wrong: its manifest names {size:,} bytes, and {most}; nothing was opened")
    if size > free_bytes(runs):
        free = spell_bytes(free_bytes(runs) / 1e6)
        raise BadInput(f"{runs}: {spell_bytes(size / 1e6)} are needed and {free} are free: make room, or give --runs")


def _extract(tar: tarfile.TarFile, manifest: PackManifest, draft: Path) -> None:
    """Write each file of the manifest into the draft. Anything else in the file ends it."""
    waiting = dict(manifest.files)
    with progress(len(waiting), "open", "files") as advance:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # else each member is kept in memory
            packed = waiting.pop(member.name, None)
            if packed is None or not _is_plain(member) or member.size != packed.bytes:
                raise tarfile.ReadError(f"{member.name!r} is not as {MANIFEST} names it")
            tar.extract(member, draft, filter="data")
            if sha256_file(draft / member.name) != packed.sha256:
                raise tarfile.ReadError(f"{member.name}: its checksum differs")
            advance(1)
    if waiting:
        raise tarfile.ReadError(f"{next(iter(waiting))} is missing")


def _complete(draft: Path, manifest: PackManifest, name: str) -> None:
    """Make the draft a whole folder of runs: with the links of its run, under its new name."""
    folder = draft / RUN
    _link_stages(draft / CACHE, manifest)
    run = open_run(folder)
    for described in run.stages:
        if not STAGE_FOLDER.fullmatch(f"{described['name']}-{described['identity']}"):
            raise tarfile.ReadError(f"{described['name']!r} is no name of a stage")
    for stage in run.status():
        if stage.state == "missing" or (stage.damage and not stage.damage.only_model):
            raise tarfile.ReadError(f"its stage {stage.name} is not whole")
        point_link(folder / "stages" / stage.name, stage.folder)
    finish_run(run)
    if run.config.name != name:
        rename_run(folder, name)


def _link_stages(cache: Path, manifest: PackManifest) -> None:
    for link, stage in manifest.links.items():
        if not (cache / link).exists():
            point_link(cache / link, cache / stage)


def _publish(draft: Path, folder: Path, manifest: PackManifest) -> int:
    """Move stages that are not there yet, then the run; the number of stages that are there."""
    drafted = open_run(draft / RUN)
    target = Run(folder, drafted.config, drafted.stages)
    statuses = target.status()
    for stage in statuses:
        if stage.damage and not stage.damage.only_model:
            raise BadInput(f"{stage.damage.what}, so stage {stage.name} is damaged; remove {stage.folder}, then again")
        if stage.state != "done" and is_at_work(stage.folder):
            raise BadInput(f"{stage.folder}: a process is making this stage; wait until it ends, then again")
    make_folder(target.cache)
    for path in (draft / CACHE).iterdir():
        if not path.is_symlink() and not (target.cache / path.name).exists():
            publish(path, target.cache / path.name)
    _link_stages(target.cache, manifest)
    publish(draft / RUN, folder)
    return sum(stage.state == "done" for stage in statuses)
