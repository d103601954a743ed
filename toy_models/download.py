"""Fetching one large published file: resumed where it broke off, checked, and only then in place.

Nothing here runs unless it is asked for: the book needs no network.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from guidance_edu.settings import progress

CHUNK = 2**20


@dataclass(frozen=True)
class Published:
    """A file that is offered at an address: its size in bytes and the sha256 it must have."""

    address: str
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.address.rsplit("/", 1)[-1]


# Size and hash as many independent users of the file have recorded them (sha256 for the same file
# as the md5 90528d7ca1a48142e341f4ef8d21d0de).
TINY_IMAGENET = Published(
    "https://cs231n.stanford.edu/tiny-imagenet-200.zip",
    248_100_043,
    "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
)


class WrongFileError(ValueError):
    """What an address offers is not the file that was published there."""


def fetch(
    published: Published,
    folder: str | Path,
    tries: int = 5,
    pause: float = 2.0,
    timeout: float = 30.0,
) -> Path:
    """Bring a published file into a folder and return its path.

    What has arrived is kept in ``NAME.part``: a broken connection, or a second call after the
    first was stopped, goes on from there. The file gets its name only with the right size and
    hash. A file that is already there is checked and not fetched again.

    Units:   pause and timeout in seconds; the pause doubles from try to try.
    Errors:  ConnectionError (an OSError) where the address cannot be reached; WrongFileError (a
             ValueError) where it offers another file, or where what came is damaged.
    """
    if not published.address.startswith(("https://", "http://")):
        raise ValueError(f"expected an address with https:// or http://, got {published.address}")
    folder = Path(folder)
    path, part = folder / published.name, folder / f"{published.name}.part"
    if path.exists():
        _check(path, published)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    problem: Exception | None = None
    for attempt in range(tries):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        before = part.stat().st_size if part.exists() else 0
        if before >= published.bytes:
            break
        try:
            _continue(published, part, before, timeout)
        except urllib.error.HTTPError as error:
            raise ConnectionError(
                f"{published.address} answers {error.code} ({error.reason})"
            ) from error
        except WrongFileError:
            raise
        except (OSError, HTTPException) as error:
            problem = error
            if isinstance(getattr(error, "reason", None), socket.gaierror):
                break  # no such name, or no network at all: waiting will not help
    arrived = part.stat().st_size if part.exists() else 0
    if arrived < published.bytes:
        raise ConnectionError(
            f"cannot fetch {published.address}: {problem or 'the connection was closed early'};"
            f" {arrived} of {published.bytes} bytes arrived and are kept. Without a network, fetch"
            " the file elsewhere and pack it with 'python -m toy_models images pack FILE'"
        ) from problem
    try:
        _check(part, published)
    except WrongFileError:
        part.unlink()
        raise
    os.replace(part, path)
    return path


def _continue(published: Published, part: Path, before: int, timeout: float) -> None:
    """Append what is missing; start again where the server cannot send a part of a file."""
    request = urllib.request.Request(published.address)
    if before:
        request.add_header("Range", f"bytes={before}-")
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        whole = _size(answer, before)
        if whole is not None and whole != published.bytes:
            raise WrongFileError(
                f"{published.address} offers another file: expected {published.bytes} bytes,"
                f" it has {whole}"
            )
        resumed = answer.status == 206
        with part.open("ab" if resumed else "wb") as stream:
            chunks = -(-(published.bytes - stream.tell()) // CHUNK)
            for chunk in progress(_chunks(answer), f"{published.name} (MB)", chunks):
                stream.write(chunk)
                if stream.tell() > published.bytes:
                    raise WrongFileError(
                        f"{published.address} sends more than {published.bytes} bytes"
                    )


def _size(answer: HTTPResponse, before: int) -> int | None:
    """Return the size of the whole file that the server states, if it does."""
    if answer.status == 206:
        stated = re.fullmatch(
            r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "").strip()
        )
        if not stated or int(stated[1]) != before:
            raise WrongFileError(
                f"the server sends another part than the one from byte {before}:"
                f" {answer.headers.get('Content-Range')!r}"
            )
        return None if stated[2] == "*" else int(stated[2])
    length = answer.headers.get("Content-Length")
    return int(length) if length else None


def _chunks(answer: HTTPResponse) -> Iterator[bytes]:
    while chunk := answer.read(CHUNK):
        yield chunk


def _check(path: Path, published: Published) -> None:
    size = path.stat().st_size
    if size != published.bytes:
        raise WrongFileError(f"{path} has {size} bytes, expected {published.bytes}: delete it")
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != published.sha256:
        raise WrongFileError(
            f"{path} is damaged or another file: expected sha256 {published.sha256}, got {found}"
        )
