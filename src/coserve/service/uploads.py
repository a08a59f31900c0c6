"""Receiving a multipart form: the file goes to disk as it arrives, the other fields are short texts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import IO

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from coserve.errors import InvalidRequest
from coserve.service.bodies import read_chunks
from coserve.service.errors import PayloadTooLarge

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each form that is none
FIELD_BYTES = 4096  # the longest text field
FIELDS = 32
OVERHEAD = 1 << 16  # what a form may have around its file


class Upload:
    """A form while it is received: `fields` by name, and the part called "file" written to `path`."""

    def __init__(self, boundary: bytes, path: Path, limit: int):
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.size = 0
        self.complete = False
        self._limit = limit
        self._path = path
        self._file: IO[bytes] | None = None
        self._header, self._value = b"", b""
        self._name = ""
        self._text = b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_header,
                "on_header_value": self._on_value,
                "on_header_end": self._end_header,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )

    def feed(self, chunk: bytes) -> None:
        """Raises: `InvalidRequest` for what is no form, `PayloadTooLarge` for a file above the limit."""
        try:
            self._parser.write(chunk)
        except MultipartParseError:
            raise InvalidRequest("The request's body is not valid multipart/form-data.") from None

    def _begin(self) -> None:
        self._name, self._text = "", b""
        if len(self.fields) >= FIELDS:
            raise InvalidRequest(f"The form has more than {FIELDS} fields.")

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        header, value = self._header.lower(), self._value
        self._header, self._value = b"", b""
        if header != b"content-disposition":
            return
        options = parse_options_header(value)[1]
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name == "file":
            if self._file is not None:
                raise InvalidRequest("The form has more than one 'file'.", param="file")
            self.filename = _clean(options.get(b"filename", b"").decode("utf-8", "replace"))
            self._file = self._path.open("xb")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file" and self._file is not None:
            self.size += end - start
            if self.size > self._limit:
                raise PayloadTooLarge(f"The file is larger than the limit of {self._limit} bytes.", param="file")
            self._file.write(data[start:end])
        else:
            self._text += data[start:end]
            if len(self._text) > FIELD_BYTES:
                raise InvalidRequest(f"The form's field is longer than {FIELD_BYTES} bytes.", param=self._name)

    def _end(self) -> None:
        if self._name != "file":
            self.fields[self._name] = self._text.decode("utf-8", "replace")

    def _finish(self) -> None:
        self.complete = True

    def close(self) -> None:
        """Everything that was received is on the disk afterwards."""
        if self._file is not None and not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def discard(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._path.unlink(missing_ok=True)


def _clean(filename: str) -> str:
    """The last part of a path, printable, of a sane length."""
    name = filename.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c for c in name if c.isprintable())[:255] or "file"


async def receive_form(request: Request, path: Path, limit: int) -> Upload:
    """Receive the form; its file is at `path`, complete. On any error nothing is left there.

    Raises: `InvalidRequest`, `PayloadTooLarge`, `ClientGone`.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidRequest("The request's body must be multipart/form-data with 'file' and 'purpose'.")
    upload = Upload(options[b"boundary"], path, limit)
    try:
        async for chunk in read_chunks(request, limit + OVERHEAD):
            await asyncio.to_thread(upload.feed, chunk)
        if not upload.complete:
            raise InvalidRequest("The request's body is not valid multipart/form-data: it ends too early.")
        if upload.filename is None:
            raise InvalidRequest("'file' is required.", param="file", code="missing_required_parameter")
        await asyncio.to_thread(upload.close)
    except BaseException:
        upload.discard()
        raise
    return upload
