"""`kcompat datasets`: what the collector's records hold, name by name."""

from __future__ import annotations

import click

from kcompat.cli_output import drawn, emit, to_json


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the page of the documentation.")
def datasets(names: tuple[str, ...], as_json: bool, as_markdown: bool) -> None:
    """Every tag and field of the datasets: its type, and what it says. NAME: netflow, httpflow, dnsflow, bash.

    Those marked + are not in every record.

    \b
    Examples:
      kcompat datasets
      kcompat datasets httpflow
      kcompat datasets --json
    """
    from collector import described

    if unknown := [name for name in names if name not in described.ALL]:
        raise click.BadParameter(f"there is no dataset {unknown[0]!r}: there is {', '.join(described.ALL)}")
    wanted = names or described.ALL
    if as_markdown:
        emit(described.markdown())
    elif as_json:
        emit(to_json({name: rows for name, rows in described.as_json().items() if name in wanted}))
    else:
        emit("".join(_table(name) for name in wanted))


def _table(dataset: str) -> str:
    from rich.table import Table

    from collector.described import of

    table = Table(title=dataset, title_justify="left", box=None, pad_edge=False)
    for heading in ("name", "kind", "type", "what it says"):
        table.add_column(heading, no_wrap=heading == "name")
    for one in of(dataset):
        table.add_row(one.name + " +" * one.optional, one.kind, one.type, one.text.replace("`", ""))
    return drawn(lambda console: console.print(table)) + "\n"
