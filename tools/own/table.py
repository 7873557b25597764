"""Image-level labels in a table: CSV, TSV or text, of any of the shapes that people keep them in.

`file,label`, several labels in a cell, several rows or columns for a file, or a column of 0 and 1
for each class; separated by commas, semicolons, tabs or spaces; with a header or without.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from core import files
from core.errors import InputError

ENDINGS = (".csv", ".tsv", ".txt")
# The column that holds names of classes, by its header.
FILE_HEADS = {"file", "filename", "file_name", "image", "image_id", "img", "id", "name", "path"}
LABEL_HEADS = {"label", "labels", "class", "classes", "class_name", "tag", "tags", "category"}
BITS = {"": False, "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
# More of what people write into a column of a class.
MARKS = BITS | {"-1": False, "no": False, "n": False, "yes": True, "y": True, "x": True}
BITS_NAMED = "0 and 1 alone: call the column after the class that 1 stands for"
INDEX = re.compile(r"(unnamed: ?\d+|index)?", re.IGNORECASE)  # what pandas puts before the columns
LISTS = {"split", "set", "subset", "fold", "partition"}
PICTURES = re.compile(r"\.(jpe?g|png|webp|bmp|tiff?|hei[cf])$", re.IGNORECASE)
NUMBER = re.compile(r"[-+.\d]*(e[-+]?\d+)?|nan", re.IGNORECASE)
NUMBERED = re.compile(r"[ ._-]?\d+$")  # what pandas puts behind a header that is there twice
QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
Rows = list[list[str]]


class Table:
    """A table read: classes of each file (in the order of the rows), notes for the user.

    Columns: names of the classes of a table with a column for each, in its order.
    """

    def __init__(self, path: Path, known: Callable[[str], bool], separator: str):
        """Known: whether a cell names a picture. Separator: "auto", or what parts labels."""
        self.path, self.separator = path, separator
        self.classes: dict[str, list[str]] = {}
        self.columns: list[str] = []
        self.notes: list[str] = []
        rows = self._rows(known)
        self.file = self._file_column(rows, known)
        head = rows.pop(0) if self._is_head(rows, known) else None
        width = max(len(row) for row in rows)
        self.rows = [row + [""] * (width - len(row)) for row in rows]
        self._read(head + [""] * (width - len(head)) if head else [])

    def _rows(self, known: Callable[[str], bool]) -> Rows:
        """The cells, parted by what makes most rows name a picture."""
        text = files.read_text(self.path, "save the table as UTF-8 text", max_bytes=1 << 30)
        lines = [line for line in text.splitlines() if line.strip()]
        found: list[Rows] = [[line.split() for line in lines]]  # the last resort
        broken: dict[int, csv.Error] = {}
        for mark in (";", ",", "\t"):
            try:
                rows = list(csv.reader(lines, delimiter=mark))
                if len(rows) < len(lines):  # a cell of several lines, or an open quote
                    rows = list(csv.reader(lines, delimiter=mark, strict=True))
            except csv.Error as error:
                broken[len(found)] = error
                rows = [line.split(mark) for line in lines]
            found.append([[cell.strip() for cell in row] for row in rows])
        # Of equals the one that finds more columns, as where a row may hold a file's name alone;
        # spaces find the most, in names of two words too.
        sizes = [(sum(any(map(known, row)) for row in rows), sum(map(len, rows))) for rows in found]
        sizes[0] = (sizes[0][0], 0)
        best = max(range(len(found)), key=lambda i: (sizes[i], i))
        if best in broken:
            what = f"not a table ({broken[best]}; an open quote?)"
            raise InputError(f"{self.path}: {what}; save it as CSV again")
        return found[best]

    def _file_column(self, rows: Rows, known: Callable[[str], bool]) -> int:
        """The column that names the pictures: endings before bare numbers, names before an index.

        Raises InputError where none does, or two name other ones.
        """
        hits, endings = Counter[int](), Counter[int]()
        for row in rows:
            named = [i for i, cell in enumerate(row) if known(cell)]
            hits.update(named)
            endings.update(i for i in named if PICTURES.search(row[i]))
        if not hits:
            first = " | ".join(rows[0])[:80] if rows else "nothing"
            what = f"no cell names a picture; its first row is {first!r}"
            raise InputError(f"{self.path}: {what}: are these labels of other pictures?")
        labels = {i for i in hits if i < len(rows[0]) and rows[0][i].casefold() in LABEL_HEADS}
        if labels != hits.keys():  # numbers of classes are names of pictures as well: 1.jpg
            hits = Counter({i: n for i, n in hits.items() if i not in labels})
        best = max((endings[i], hits[i]) for i in hits)
        width = max(map(len, rows))
        columns = list(zip(*(row + [""] * (width - len(row)) for row in rows), strict=True))
        found = sorted(i for i in hits if (endings[i], hits[i]) == best)
        found = [i for i in found if not INDEX.fullmatch(columns[i][0])] or found
        if not endings and len({columns[i][1:] for i in found}) > 1:
            names = ", ".join(columns[i][0] for i in found)
            raise InputError(f"{self.path}: which of the columns {names} names the pictures?")
        return found[0]

    def _is_head(self, rows: Rows, known: Callable[[str], bool]) -> bool:
        """Whether the first row names no picture, an absent one neither: no label is in it."""
        first = rows[0][self.file] if self.file < len(rows[0]) else ""
        if known(first) or PICTURES.search(first):
            return False
        if first.casefold() in FILE_HEADS or LABEL_HEADS & {cell.casefold() for cell in rows[0]}:
            return True
        below = {(i, cell) for row in rows if row != rows[0] for i, cell in enumerate(row)}
        named = ((i, cell) for i, cell in enumerate(rows[0]) if cell.casefold() not in MARKS)
        return not below & {*named}

    def _column(self, i: int) -> list[str]:
        return [row[i] for row in self.rows]

    def _read(self, head: list[str]) -> None:
        others = [i for i in range(len(self.rows[0])) if i != self.file]
        bits = {i for i in others if {cell.casefold() for cell in self._column(i)} <= MARKS.keys()}
        if not head:
            if others and bits == set(others) and any(map(any, map(self._column, others))):
                what = "columns of 0 and 1 without a header"
                raise InputError(f"{self.path}: {what}; name the classes in its first row")
            columns = [column for i in others if any(column := self._column(i))]
            if len({all(map(NUMBER.fullmatch, column)) for column in columns}) > 1:
                what = "columns of numbers beside others, without a header"
                raise InputError(f"{self.path}: {what}; name them in a first row, one `label`")
            return self._read_names(others)
        named = [i for i in others if head[i].casefold() in LABEL_HEADS]
        first = {head[i].casefold() for i in named}
        again = (i for i in others if NUMBERED.sub("", head[i].casefold()) in first)
        named += [i for i in again if not all(map(NUMBER.fullmatch, self._column(i)))]
        named = sorted({*named})
        if named:
            named += [i for i in others if i > named[-1] and not head[i]]  # more than one to a row
        elif len(others) == 1 and not bits:
            named = others
        self.columns = [head[i] for i in others if i in bits and head[i] and not named]
        if not named and not self.columns:
            names = ", ".join(head[i] for i in others if head[i])[:80]
            what = f"which of the columns {names} holds the classes? call it `label`"
            raise InputError(f"{self.path}: {what}")
        used = {*named} or {i for i in bits if head[i]}
        if not named:
            self._check_left_out({head[i]: self._column(i) for i in others if i not in used})
        if unused := [head[i] for i in others if i not in used and head[i]]:
            self.notes.append(f"{self.path}: columns left out: {', '.join(unused)}"[:200])
        if named:
            return self._read_names(named)
        for row in self.rows:
            marked = [head[i] for i in sorted(used) if MARKS[row[i].casefold()]]
            self.classes.setdefault(row[self.file], []).extend(marked)

    def _check_left_out(self, columns: dict[str, list[str]]) -> None:
        """Refuse a table whose marks are not all there is to know: counts, a bad cell, names."""
        columns.pop("", None)
        for head, cells in columns.items():
            odd = sorted({cell for cell in cells if cell.casefold() not in MARKS})
            if "0" in cells and all(map(str.isdigit, cells)):
                what = f"the column {head!r} holds {', '.join(sorted({*cells})[:4])}, as of counts"
                raise InputError(f"{self.path}: {what}; write 1 where the class is in the picture")
            if sum(cell.casefold() in MARKS for cell in cells if cell) > len(cells) / 2:
                what = f"the column {head!r} holds {odd[0]!r} among its marks"
                raise InputError(f"{self.path}: {what}; write 1 or 0 there")
            again = len({*cells}) <= len(cells) / 2 and not all(map(NUMBER.fullmatch, odd))
            if again and len(self.columns) < 3 and head.casefold() not in LISTS:
                names = ", ".join([head, *self.columns])
                what = f"which of the columns {names} holds the classes? call it `label`"
                raise InputError(f"{self.path}: {what}, or leave the others out")

    def _read_names(self, columns: list[int]) -> None:
        cells = {row[i] for row in self.rows for i in columns}
        if cells - {""} and {cell.casefold() for cell in cells} <= BITS.keys():
            raise InputError(f"{self.path}: labels of {BITS_NAMED}")
        part = self._parting(cells)
        for row in self.rows:
            if not row[self.file]:
                continue
            names = [name for i in columns for name in part(row[i])]
            self.classes.setdefault(row[self.file], []).extend(names)

    def _parting(self, cells: set[str]) -> Callable[[str], list[str]]:
        """A function that parts a cell into labels."""
        marks, printed = self.separator, dict[str, list[str]]()
        if marks == "auto":
            lists = [cell for cell in cells if cell.startswith("[") and cell.endswith("]")]
            # Names between quotes may hold the marks.
            printed = {cell: [a or b for a, b in QUOTED.findall(cell)] for cell in lists
                       if not QUOTED.sub("", cell).strip("[], \n")}  # fmt: skip
            cells = cells - printed.keys()
            marks = "".join(mark for mark in ";|," if any(mark in cell for cell in cells))
            marks += "[]'\"" if lists else ""  # as Python prints a list
            if not marks and any(" " in cell for cell in cells):
                # Few words in many ways are labels side by side, others are names of two words.
                words = {word for cell in cells for word in cell.split()}
                marks = " " if len(words) <= len(cells - {""}) else ""
                how = "part labels" if marks else "belong to names"
                first = min(cell for cell in cells if " " in cell)
                self.notes.append(f"spaces {how}, as in {first!r}; --separator says otherwise")
        marks = {"none": "", "space": " ", "tab": "\t"}.get(marks, marks)
        if not marks:
            return lambda cell: [cell] if cell else []
        pattern = re.compile("[" + "".join(map(re.escape, marks)) + "]")

        def part(cell: str) -> list[str]:
            names = printed.get(cell) or pattern.split(cell)
            return [name for each in names if (name := each.strip())]

        return part
