"""A table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import typer


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> None:
    """With rules on a terminal; aligned columns otherwise, so that `grep` and `awk` work. All but the first
    `text_columns` are set to the right."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        for row in (columns, *rows):
            typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < text_columns else "right", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)
