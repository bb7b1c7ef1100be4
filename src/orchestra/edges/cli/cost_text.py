"""How cost, budgets, estimates and limits are written for people and for spreadsheets."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from orchestra.edges.cli.render import Face, Part, Renderer, Styled
from orchestra.quantity import show_ms, show_usd

if TYPE_CHECKING:
    from orchestra.costviews import BudgetsReply, CostReply, CostRow, EstimateReply, LimitsReply, Range

NAMELESS: Final = "(none)"
"""Shown for what bears no name of the scope: requests of a token that names no task, or an attempt that is long forgotten."""
FORMULA_STARTS: Final = ("=", "+", "-", "@")
"""What makes a spreadsheet take a text for a formula."""
COLUMNS: Final = ("requests", "input", "cache write", "cache read", "output", "settled", "said", "difference")
CSV_MONEY: Final = ("settled_usd_micros", "said_usd_micros", "difference_usd_micros", "reserved_usd_micros")


def show_costs(render: Renderer, reply: CostReply) -> None:
    """Writes the table, its total, and what is uncertain about it."""
    if not reply.rows:
        render.line("nothing was spent")
    else:
        header = (reply.by, *COLUMNS, "notes")
        rows = [*[_cells(row.name or NAMELESS, row) for row in reply.rows], _cells("total", reply.total)]
        render.table(header, rows, right=COLUMNS)
    if reply.left_out:
        render.note(f"and {reply.left_out} more, counted in the total")
    prices = f"; prices of {reply.prices_made}" if reply.prices_made else ""
    render.note(f"{reply.note}{prices}")


def _cells(name: str, row: CostRow) -> list[Part]:
    counts = (row.requests, row.input_tokens, row.cache_write_tokens, row.cache_read_tokens, row.output_tokens)
    return [
        name,
        *(str(count) for count in counts),
        show_money(row.settled_usd_micros),
        show_money(row.said_usd_micros),
        _difference(row.difference_usd_micros),
        uncertain(row),
    ]


def show_money(micros: int | None) -> str:
    """Returns dollars; a dash where nobody knows."""
    return "-" if micros is None else show_usd(micros)


def _difference(micros: int | None) -> Part:
    if micros is None:
        return "-"
    sign = "-" if micros < 0 else "+" if micros else ""
    return Styled(f"{sign}{show_usd(abs(micros))}", "yellow" if micros else "")


def uncertain(row: CostRow) -> str:
    """Returns what to know about a row's figures, in a few words."""
    found = (
        (row.assumed_requests, "requests assumed"),
        (row.unpriced_requests, "requests without a known price"),
        (row.uncounted_attempts, "attempts past the gateway"),
        (row.unsaid_attempts if row.compared_attempts else 0, "attempts not compared"),
    )
    parts = [f"{count} {what}" for count, what in found if count]
    return ", ".join([*parts, *([f"{show_money(row.reserved_usd_micros)} reserved"] if row.reserved_usd_micros else [])])


def csv_of(reply: CostReply) -> str:
    """Returns the rows and the total as CSV; money in dollars with six places, empty where it is not known."""
    import csv

    names = [name for name in reply.total.__struct_fields__ if name != "name"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([reply.by, *(name.replace("_usd_micros", "_usd") for name in names)])
    for row in (*reply.rows, reply.total):
        writer.writerow([_no_formula(row.name), *(_csv_cell(name, getattr(row, name)) for name in names)])
    return out.getvalue()


def _csv_cell(name: str, value: int | None) -> str:
    if value is None:
        return ""
    if name not in CSV_MONEY:
        return str(value)
    whole, rest = divmod(abs(value), 1_000_000)
    return f"{'-' if value < 0 else ''}{whole}.{rest:06}"


def _no_formula(text: str) -> str:
    """A name may come from a request: what a spreadsheet would carry out is made plain text."""
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def show_budgets(render: Renderer, reply: BudgetsReply) -> None:
    """Writes the table of budgets."""
    if reply.budgets:
        rows: list[list[Part]] = [
            [
                each.scope,
                each.name,
                show_money(each.budget_usd_micros),
                show_money(each.settled_usd_micros),
                show_money(each.reserved_usd_micros),
                used_percent(each.settled_usd_micros, each.budget_usd_micros),
            ]
            for each in reply.budgets
        ]
        render.table(("scope", "name", "budget", "settled", "reserved", "used"), rows, right=("budget", "settled", "reserved", "used"))
    else:
        render.line("there are no budgets")
    if reply.note:
        render.note(reply.note)


def used_percent(used: int, whole: int) -> Styled:
    """Returns the share of a budget that is used, in the colour of how near its end is."""
    percent = used * 100 // whole if whole else 100
    return Styled(f"{percent}%", "red" if percent >= 100 else "yellow" if percent >= 80 else "")


def show_estimate(render: Renderer, reply: EstimateReply) -> None:
    """Writes the estimate, task by task and in all."""
    prefix = f"{reply.plan}/"
    header = ("task", "low", "likely", "high", "tokens", "time", "from")
    rows: list[list[Part]] = [
        [
            each.task.removeprefix(prefix),
            *_money(each.cost_usd_micros),
            str(each.tokens.likely),
            show_ms(each.duration_ms.likely),
            each.basis + ("" if each.priced else " (its model has no known price)"),
        ]
        for each in reply.tasks
    ]
    total: list[Part] = ["total", *_money(reply.cost_usd_micros), str(reply.tokens.likely), show_ms(reply.duration_ms.likely), ""]
    render.table(header, [*rows, total], right=header[1:6])
    tokens, time = reply.tokens, reply.duration_ms
    render.note(
        f"{tokens.low} to {tokens.high} tokens; {show_ms(time.low)} to {show_ms(time.high)} with {reply.agents} agents; "
        f"{reply.samples} of {len(reply.tasks)} tasks from the past, the others from prices of {reply.prices_made}"
    )


def _money(values: Range) -> Sequence[str]:
    return show_money(values.low), show_money(values.likely), show_money(values.high)


def show_limits(render: Renderer, reply: LimitsReply) -> None:
    """Writes the table of limits."""
    if reply.limits:
        rows: list[list[Part]] = [
            [
                f"{each.upstream}.{each.account}".rstrip("."),
                each.model_class,
                each.name or "none known",
                _count(each.limit),
                "-" if each.used_percent is None else Styled(f"{each.used_percent}%", "yellow" if each.used_percent >= 70 else ""),
                _count(each.left),
                str(each.foreign or ""),
                f"{each.in_flight}/{each.concurrency}" if each.concurrency else "-",
                str(each.waiting),
                show_ms(each.closed_ms) if each.closed_ms else "",
            ]
            for each in reply.limits
        ]
        right = ("a minute", "used", "left", "others", "on way", "waiting")
        render.table(("account", "models", "limit", "a minute", "used", "left", "others", "on way", "waiting", "closed"), rows, right=right)
    elif reply.source:
        render.line("no limit is known yet" if reply.source == "gateway" else "no limits are written")
    if reply.upstreams_down:
        render.line(Styled(f"down: {', '.join(reply.upstreams_down)}", "red"))
    if render.face is Face.HUMAN:
        render.note(reply.note)


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)
