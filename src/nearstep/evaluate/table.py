"""A table, and its four ways onto a page."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

_LATEX = str.maketrans(
    {
        "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}", "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A head, and rows of as many cells."""

    heads: Sequence[str]
    rows: Sequence[Sequence[object]]

    @property
    def lines(self) -> list[list[str]]:
        """Cells as they are shown, the head first."""
        return [[str(cell) for cell in line] for line in (self.heads, *self.rows)]

    def __str__(self) -> str:
        """In markdown: one line for the head and one for each row."""
        head, *rows = self.lines
        lines = [head, ["---"] * len(head), *rows]
        return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)

    def latex(self) -> str:
        """A tabular with rules of the package booktabs."""
        head, *rows = [" & ".join(cell.translate(_LATEX) for cell in line) + r" \\" for line in self.lines]
        body = [r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
        return "\n".join([rf"\begin{{tabular}}{{{'l' * len(self.heads)}}}", *body, r"\end{tabular}"])

    def csv(self) -> str:
        """Values with commas between them, quoted where they hold one."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self.lines)
        return text.getvalue().rstrip("\n")

    def html(self) -> str:
        """A table element."""
        head, *rows = self.lines
        lines = [_row(head, "th"), *(_row(row, "td") for row in rows)]
        return "\n".join(["<table>", *lines, "</table>"])

    def rendered(self, kind: str) -> str:
        """As md, latex, csv or html."""
        return {"md": self.__str__, "latex": self.latex, "csv": self.csv, "html": self.html}[kind]()


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
