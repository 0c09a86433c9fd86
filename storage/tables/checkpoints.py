"""Directories of files, such as weights: staged under a unique name, hashed, committed as a whole.

The shared cache holds directories that belong to no run, under the digest of what they were made from.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from storage.errors import (
    CorruptEntryError,
    DamagedFileError,
    InvalidEntryError,
    MissingObjectError,
)
from storage.log.manifest import FORMAT, FileRef, seal, unseal
from storage.log.store import Store
from storage.log.tombstones import why_missing
from storage.log.writer import put_once
from storage.objects import durable, layout
from storage.tables.shards import check_size

_CHUNK = 4 * 2**20
_SETTLED_NS = 100_000_000
"""A file system's times may be as coarse as a tick: a file that has just been written might be written to again, and
look the same. Of a file that was older than this when reading began, any later write shows.
"""
_LARGE = 64 * 2**20
# A round reads its own weights, those of the round before, and those of round 0.
KEPT_COPIES = 3


class StagedDirectory:
    """A directory to write into.

    Attributes:
        path: where to write.
        files: the files found there; set when the block has ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: tuple[FileRef, ...] = ()


@contextmanager
def stage_directory(store: Store, run: str, round: int, stage: str) -> Iterator[StagedDirectory]:
    """Makes a new directory; at the end of the block its files are durable, and can be committed. Gone if it fails.

    Raises:
        InvalidEntryError: the directory is empty, or holds a link or a special file.
        StorageFullError, StorageAccessError, BackendError: it could not be written.
    """
    with _stage(store, layout.new_directory_key(run, round, stage)) as staged:
        yield staged


def local_directory(store: Store, files: Sequence[FileRef], cache: Path, *, verify: bool = True) -> Path:
    """Returns the committed directory on a local disk: in place if the store is local, else downloaded once.

    Args:
        files: all files of one directory, as they were committed.
        cache: where downloads go, under the digest of the directory; the ``KEPT_COPIES`` used last stay there.
        verify: compare every SHA-256; without it, only names and sizes.

    Raises:
        DamagedFileError: a file is missing, is not the one that was committed, or was added since.
        DroppedFileError: the files were removed on purpose.
    """
    base = _base(files)
    local = store.objects.local_path(base)
    if local is not None:
        try:
            _check_directory(local, files, verify)
        except DamagedFileError as error:
            raise why_missing(store.objects, files) or error from None
        return local
    target = cache / directory_digest(files)
    if not target.is_dir():
        copy_directory(store, files, target)
    _check_directory(target, files, verify)
    _forget_old_copies(cache, target)
    return target


def directory_digest(files: Sequence[FileRef]) -> str:
    """Computes a SHA-256 over the sorted names and SHA-256s: the same wherever the directory lies."""
    digest = hashlib.sha256()
    for name, sha256 in sorted((_name(file), file.sha256) for file in files):
        digest.update(f"{name}\0{sha256}\n".encode())
    return digest.hexdigest()


def weights_digest(files: Sequence[FileRef]) -> str:
    """Computes the :func:`directory_digest` of the safetensors files alone, which names the weights.

    Raises:
        InvalidEntryError: there are none.
    """
    weights = [file for file in files if _name(file).endswith(".safetensors")]
    if not weights:
        raise InvalidEntryError("the directory holds no .safetensors file: it has no weights to hash")
    return directory_digest(weights)


def find_shared(store: Store, kind: str, digest: str) -> tuple[FileRef, ...] | None:
    """Returns the files of a shared directory, None if there is none.

    Raises:
        CorruptEntryError: its manifest is damaged.
    """
    key = layout.shared_manifest_key(kind, digest)
    try:
        value = unseal(store.objects.read(key))
    except MissingObjectError:
        return None
    except CorruptEntryError as error:
        raise CorruptEntryError(f"{key} is damaged: {error}") from error
    expected = {"format": FORMAT, "kind": kind, "key": digest}
    if {name: value.get(name) for name in expected} != expected or not isinstance(value.get("files"), list):
        raise CorruptEntryError(f"{key} is no manifest of {kind} {digest}")
    return tuple(FileRef.from_json(file) for file in value["files"])


def has_shared(store: Store, kind: str) -> bool:
    """Says whether there is any shared directory of this kind."""
    return kind in store.objects.children(layout.SHARED)


def shared_files(store: Store, keys: Iterable[str]) -> set[str]:
    """Returns those of these keys that are shared manifests, or files that one names.

    Raises:
        CorruptEntryError: a manifest is damaged.
    """
    found = set()
    for key in keys:
        if key == layout.shared_manifest_of(key):
            _, kind, digest, _ = key.split("/")
            found |= {key, *(file.path for file in find_shared(store, kind, digest) or ())}
    return found


@contextmanager
def stage_shared(store: Store, kind: str, digest: str) -> Iterator[StagedDirectory]:
    """Makes a new shared directory, visible at the end of the block.

    If another process was faster, ``files`` are the files of that one.
    """
    with _stage(store, layout.new_shared_directory_key(kind, digest)) as staged:
        yield staged
    manifest = {"format": FORMAT, "kind": kind, "key": digest, "files": [file.to_json() for file in staged.files]}
    data = seal(manifest, f"the manifest of {kind} {digest}")
    if not put_once(store.objects, layout.shared_manifest_key(kind, digest), data):
        store.objects.delete([file.path for file in staged.files])
        staged.files = find_shared(store, kind, digest) or ()


@contextmanager
def _stage(store: Store, key: str) -> Iterator[StagedDirectory]:
    local = store.objects.local_path(key)
    if local is None:
        with tempfile.TemporaryDirectory(prefix="rondo-") as temporary:
            staged = StagedDirectory(Path(temporary))
            with durable.clear_write_errors(staged.path):
                yield staged
            staged.files = tuple(_upload(store, key, staged.path, name) for name in _names(staged.path))
        return
    with durable.clear_errors(local):
        durable.make_directories(local)
    staged = StagedDirectory(local)
    try:
        with _made_once(local), durable.clear_write_errors(local):
            yield staged
        store.objects.local_path(key)  # raises if the root was moved
        names = _names(local)
        inner = {parent.as_posix() for name in names for parent in PurePosixPath(name).parents}
        paths = [local.parent, *(local / name for name in [*inner, *names])]
        with durable.clear_errors(local), ThreadPoolExecutor(1) as disk:
            syncing = disk.submit(durable.sync_all, paths)  # while the processor hashes
            staged.files = tuple(_seal_file(key, local, name) for name in names)
            syncing.result()
    except BaseException:
        shutil.rmtree(local, ignore_errors=True)
        raise


@contextmanager
def _made_once(directory: Path) -> Iterator[None]:
    """Sees to it that nothing is left at this place if the root is moved meanwhile: libraries make it again."""
    mark = directory / ".staged"
    with durable.clear_errors(mark):
        mark.touch()
    try:
        yield
    finally:
        if mark.exists():
            mark.unlink()
        else:
            shutil.rmtree(directory, ignore_errors=True)
            with suppress(OSError):  # up to the first that has something in it
                os.removedirs(directory.parent)


def _names(directory: Path) -> list[str]:
    """Returns the sorted relative names of the files below the directory; InvalidEntryError if one is no plain file."""
    names = []
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InvalidEntryError(f"{path} is a link or a special file: a committed directory holds plain files only")
        if path.is_file():
            names.append(layout.check_relative(path.relative_to(directory).as_posix()))
    if not names:
        raise InvalidEntryError(f"{directory} holds no files: there is nothing to commit")
    return names


def _seal_file(key: str, directory: Path, name: str) -> FileRef:
    path = directory / name
    with durable.clear_errors(path), path.open("rb") as file:
        if os.fstat(file.fileno()).st_size >= _LARGE:
            _wait_until_settled(file)
        return FileRef(f"{key}/{name}", os.fstat(file.fileno()).st_size, _sha256(file), name=name)


def _wait_until_settled(file: BufferedReader) -> None:
    """Waits until the hash of a file that has just been written can be remembered: less than to hash it again."""
    time.sleep(max(0, max(_identity(file)[-2:]) + _SETTLED_NS + 1_000_000 - time.time_ns()) / 1e9)


_HASHED: OrderedDict[tuple[int, ...], str] = OrderedDict()
_MOST_HASHED = 1000


def _sha256(file: BufferedReader) -> str:
    """Hashes a file, or remembers the hash if this process has read it and it has not been touched since.

    A round reads some checkpoints twice, and hashing one takes as long as loading it. Whoever writes to a file changes
    its times.
    """
    before = _identity(file)
    settled = time.time_ns() - max(before[-2:]) > _SETTLED_NS  # before it is read: hashing may take longer than that
    found = _HASHED.get(before) or hashlib.file_digest(file, "sha256").hexdigest()
    if settled and _identity(file) == before:
        _HASHED[before] = found
        while len(_HASHED) > _MOST_HASHED:
            _HASHED.popitem(last=False)
    return found


def _identity(file: BufferedReader) -> tuple[int, ...]:
    """Returns what changes when a file is replaced or written to; its times of change come last."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _upload(store: Store, key: str, directory: Path, name: str) -> FileRef:
    path = directory / name
    with path.open("rb") as file, store.objects.sink(f"{key}/{name}", path) as sink:
        for chunk in _chunks(file):
            sink.write(chunk)
    return FileRef(f"{key}/{name}", sink.bytes, sink.sha256, name=name)


def copy_directory(store: Store, files: Sequence[FileRef], target: Path) -> None:
    """Fetches the files into a directory beside the target, then moves it there: a broken download is never used."""
    with durable.clear_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
        try:
            for file in files:
                check_size(store, file)
                path = temporary / _name(file)
                path.parent.mkdir(parents=True, exist_ok=True)
                with store.objects.open(file.path) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink, _CHUNK)
            _check_directory(temporary, files, verify=True)
            try:
                temporary.rename(target)
            except OSError:
                if not target.is_dir():  # another process was faster
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _forget_old_copies(cache: Path, used: Path) -> None:
    """Keeps the copies that were used last, by whichever process: a copy is read right after it was asked for."""
    with durable.clear_errors(cache), suppress(FileNotFoundError):  # another process forgets the same
        os.utime(used)
        copies = [path for path in cache.iterdir() if "-" not in path.name]  # not what is being downloaded
        for path in sorted(copies, key=lambda path: path.stat().st_mtime_ns)[:-KEPT_COPIES]:
            shutil.rmtree(path, ignore_errors=True)


def _check_directory(directory: Path, files: Sequence[FileRef], verify: bool) -> None:
    expected = {_name(file): file for file in files}
    for name, file in expected.items():
        path = directory / name
        if path.is_symlink() or not path.is_file():
            raise DamagedFileError(f"{path} is missing, or is no plain file: it was committed with {file.bytes} bytes")
        with durable.clear_errors(path), path.open("rb") as content:
            intact = os.fstat(content.fileno()).st_size == file.bytes
            if not intact or (verify and _sha256(content) != file.sha256):
                raise DamagedFileError(
                    f"{path} is damaged: its bytes are not the {file.bytes} bytes that were committed"
                )
    for path in directory.rglob("*"):
        if not path.is_dir() and path.relative_to(directory).as_posix() not in expected:
            raise DamagedFileError(f"{path} was not committed, but would be loaded with the rest: remove it")


def _base(files: Sequence[FileRef]) -> str:
    bases = {file.path.removesuffix("/" + _name(file)) for file in files}
    if len(bases) != 1 or any(not file.path.endswith("/" + _name(file)) for file in files):
        raise InvalidEntryError(f"{len(files)} files of {len(bases)} directories: give all files of one directory")
    return bases.pop()


def _name(file: FileRef) -> str:
    if file.name is None:
        raise InvalidEntryError(f"{file.path} is no file of a directory: it has no name there")
    return file.name


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk
