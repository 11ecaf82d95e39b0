"""The bytes of a results file and the rows in them: parsing that finds damage, formatting that loses nothing.

Nothing here touches a disk. CSV as in RFC 4180, UTF-8, one header line; a byte-order mark and CRLF line ends, as
spreadsheets write them, are read too.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

IDENTITY = ("run_id", "status", "started_at")
UNFINISHED = frozenset({"failed", "interrupted"})

Outcome = Literal["appended", "replaced", "kept"]

_RECORD = re.compile(rb'(?:[^"\n]++|"[^"]*+")*+\n')


@dataclass(frozen=True)
class Record:
    """One row as it stands in the file: its bytes with the line end, and its values as text."""

    raw: bytes
    values: tuple[str, ...]


class Table:
    """The content of a results file: a header, one record per `run_id`, and the damaged lines that were between.

    Attributes:
        header: names of the columns.
        records: the rows, in the order of the file.
        damaged: lines that are no rows of this header, in the order of the file.
    """

    def __init__(self, header: Iterable[str] = ()) -> None:
        self.header: list[str] = list(header)
        self.records: list[Record] = []
        self.damaged: list[bytes] = []
        self._positions: dict[str, int] = {}

    def value(self, record: Record, column: str) -> str:
        """Returns the text of a cell."""
        return record.values[self.header.index(column)]

    def column(self, name: str) -> list[str]:
        """Returns the texts of a column, one per record."""
        index = self.header.index(name)
        return [record.values[index] for record in self.records]

    def widen(self, columns: Iterable[str]) -> bool:
        """Adds the columns that the header lacks, empty in every record, and says whether there were any."""
        known = set(self.header)
        added = [column for column in dict.fromkeys(columns) if column not in known]
        if added:
            self.header += added
            self.records = [_widened(record, len(added)) for record in self.records]
        return bool(added)

    def record(self, cells: Mapping[str, str]) -> Record:
        """Returns a record of `cells`, whose columns the header must have; columns it does not name stay empty."""
        values = tuple(cells.get(column, "") for column in self.header)
        return Record(encode_row(values), values)

    def put(self, record: Record) -> Outcome:
        """Adds a record unless its run is already there.

        Of two records with one `run_id` a finished run stands before an unfinished one, and the run that started later
        before the earlier one. A finished run is recorded once; an unfinished one is brought up to date.
        """
        run_id = self.value(record, "run_id")
        if run_id not in self._positions:
            self._positions[run_id] = len(self.records)
            self.records.append(record)
            return "appended"
        position = self._positions[run_id]
        old = self.records[position]
        if record.values == old.values or not self._supersedes(record, old):
            return "kept"
        self.records[position] = record
        return "replaced"

    def merged(self) -> Table:
        """Returns the table ordered by start and `run_id`, with one record for each run."""
        single = Table(self.header)
        for record in self.records:
            single.put(record)
        ordered = Table(self.header)
        for record in sorted(single.records, key=self._order):
            ordered.put(record)
        return ordered

    def render(self) -> bytes:
        """Returns the bytes of the file, without the damaged lines."""
        return encode_row(self.header) + b"".join(record.raw for record in self.records)

    def load(self, record: Record) -> None:
        """Adds a record as a file has it, even one whose run came before."""
        self._positions[self.value(record, "run_id")] = len(self.records)
        self.records.append(record)

    def _supersedes(self, new: Record, old: Record) -> bool:
        new_done, old_done = (self.value(record, "status") not in UNFINISHED for record in (new, old))
        if new_done != old_done:
            return new_done
        new_start, old_start = (self.value(record, "started_at") for record in (new, old))
        return new_start > old_start or (new_start == old_start and not new_done)

    def _order(self, record: Record) -> tuple[str, str]:
        return self.value(record, "started_at"), self.value(record, "run_id")


def parse_table(data: bytes) -> Table:
    """Reads the bytes of a results file; every line that is not a whole row goes to `damaged`.

    A row that lacks its line end is damaged even if its fields are complete: its last value may have been cut.

    Raises:
        ValueError: the first line is not the header of a results file.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    if not data:
        return Table()
    first = _RECORD.match(data)
    header = _split(first.group()) if first else None
    if first is None or header is None or not _is_header(header):
        raise ValueError("the first line is not the header of a results file")
    table = Table(header)
    position = first.end()
    while position < len(data):
        match = _RECORD.match(data, position)
        raw = match.group() if match else b""
        values = _split(raw) if match else None
        if raw in {b"\n", b"\r\n"}:
            position += len(raw)
        elif values is not None and len(values) == len(header) and values != header:
            table.load(Record(raw, tuple(values)))
            position += len(raw)
        else:
            # Only this line is given up: an unbalanced quote must not take the whole rows below it along.
            end = data.find(b"\n", position) + 1 or len(data)
            table.damaged.append(data[position:end])
            position = end
    return table


def encode_row(values: Iterable[str]) -> bytes:
    """Returns one line of CSV."""
    line = io.StringIO()
    # Before Python 3.13 the writer quotes a carriage return only where it belongs to the line end.
    csv.writer(line, lineterminator="\r\n").writerow(values)
    return line.getvalue().removesuffix("\r\n").encode() + b"\n"


def format_value(column: str, value: object) -> str:
    """Returns the text of a value, from which it can be read back exactly; None is empty.

    Raises:
        TypeError: the value is no str, int, float, bool or None.
        ValueError: a text that CSV cannot carry: with a NUL, not encodable, or longer than a reader takes.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value)
    # The plain types' own methods: NumPy's floats and enumerations are subclasses that print themselves otherwise.
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    if not isinstance(value, str):
        raise TypeError(f"column '{column}' takes str, int, float, bool or None, not {type(value).__name__}")
    check_text(column, value)
    return str.__str__(value)


def check_text(what: str, text: str) -> None:
    """Raises ValueError if `text` cannot stand in a CSV file."""
    if "\0" in text:
        raise ValueError(f"'{what}' holds a NUL character, which CSV cannot carry")
    if len(text) > csv.field_size_limit():
        raise ValueError(f"'{what}' has {len(text)} characters, more than the {csv.field_size_limit()} of a CSV field")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"'{what}' cannot be written as UTF-8: {error.reason}") from error


def _is_header(names: list[str]) -> bool:
    return all(names) and len(set(names)) == len(names) and set(IDENTITY) <= set(names)


def _split(raw: bytes) -> list[str] | None:
    """Returns the fields of one line of CSV, None if it is malformed."""
    try:
        return next(csv.reader([raw.decode()], strict=True))
    except (csv.Error, UnicodeDecodeError):
        return None


def _widened(record: Record, count: int) -> Record:
    body = record.raw.removesuffix(b"\n").removesuffix(b"\r")
    return Record(body + b"," * count + record.raw[len(body) :], record.values + ("",) * count)
