"""From runs to Markdown: one table a question, medians over the rounds, and what a reader must know to trust them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks.questions import Question
from benchmarks.runs import MAX_DISTURBANCE, Result
from benchmarks.systems import System


def fault(figures: Mapping[str, float]) -> str:
    """What was wrong with a run, in words; empty when every message came once and in order."""
    names = ("gaps", "duplicates", "undelivered", "errors", "disconnects", "probes_failed")
    found = [f"{figures[name]:.0f} {name.replace('_', ' ')}" for name in names if figures.get(name)]
    if figures.get("stalled"):
        found.append("stalled")
    return ", ".join(found)


def short(number: float) -> str:
    """A number as people say it: 3 digits, with k or M."""
    for limit, divisor, unit in ((1e6, 1e6, " M"), (1e4, 1e3, " k")):
        if number >= limit:
            return f"{number / divisor:.3g}{unit}" if number < limit * 999.5 else f"{number / divisor:.0f}{unit}"
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def middle(results: Sequence[Result], figure: str) -> float:
    """The median over the rounds."""
    return median(result.figures[figure] for result in results)


def ratio(results: Sequence[Result], others: Sequence[Result], figure: str) -> str:
    """The median of the ratios round by round: neighbours in time share what disturbed them."""
    by_round = {other.round: other.figures[figure] for other in others if other.figures[figure]}
    ratios = [result.figures[figure] / by_round[result.round] for result in results if result.round in by_round]
    return f"{median(ratios):.3g}" if ratios else "-"


def rate_cells(results: Sequence[Result], first: Sequence[Result]) -> list[str]:
    """A row of a table of rates."""
    rates = [result.figures["per_second"] for result in results]
    spread = f" [{short(min(rates))} .. {short(max(rates))}]" if len(rates) > 1 else ""
    return [
        short(median(rates)) + spread,
        ratio(results, first, "per_second"),
        f"{middle(results, 'p50_us') / 1000:.2f} / {middle(results, 'p99_us') / 1000:.2f}",
        f"{middle(results, 'server_us_per_message'):.2f}",
        f"{middle(results, 'server_cpu'):.2f} / {middle(results, 'load_cpu'):.2f}",
    ]


def idle_cells(results: Sequence[Result], first: Sequence[Result]) -> list[str]:
    """A row of a table of memory."""
    asked = middle(results, "probes")
    return [
        f"{middle(results, 'kib_per_connection'):.2f}",
        ratio(results, first, "kib_per_connection"),
        f"{middle(results, 'pss_before_kib') / 1024:.0f}",
        short(middle(results, "handshakes_per_second")),
        f"{max(result.figures['slowest_probe_ms'] for result in results):.1f} of {asked:.0f}" if asked else "not asked",
    ]


def hop_cells(results: Sequence[Result], first: Sequence[Result]) -> list[str]:
    """A row of the table of hops."""
    figures = ("hop_ms", "within_p50_ms", "across_p50_ms", "within_p99_ms", "across_p99_ms")
    return [f"{middle(results, figure):.3f}" for figure in figures]


KINDS = {
    "idle": (["MiB before", "handshakes/s", "slowest probe, ms, of so many"], idle_cells),
    "idle-sse": (["MiB before", "handshakes/s", "slowest probe, ms, of so many"], idle_cells),
    "rate": (["p50 / p99 ms", "server us/message", "CPU server / load"], rate_cells),
}
"""By kind of question: the heads after the figure and the ratio, and what fills a row."""

HOP_HEADS = ["p50 within", "p50 across", "p99 within", "p99 across"]


def row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def table(question: Question, systems: Sequence[System], results: Sequence[Result]) -> str:
    """A question, its table, and what happened on the way."""
    rows: list[tuple[System, list[Result]]] = []
    notes: list[str] = []
    for system in systems:
        own = [result for result in results if result.system == system.name and result.question == question.name]
        notes += notes_about(system, question, own)
        if good := [result for result in own if result.figures]:
            rows.append((system, good))
    lines = [f"### {question.name}", "", question.asks, ""]
    if rows:
        lines += table_lines(question, rows)
        lines.append("")
    notes += disturbances([result for result in results if result.question == question.name])
    return "\n".join([*lines, *(f"- {note}" for note in notes)]).rstrip()


def table_lines(question: Question, rows: Sequence[tuple[System, list[Result]]]) -> list[str]:
    """Heads and rows; the ratios are to the bus in the form that the question names, or to whoever is there."""
    first = next((pair for pair in rows if pair[0].name == question.ours), rows[0])
    if question.kind == "hop":
        heads, cells_of = HOP_HEADS, hop_cells
    else:
        further, cells_of = KINDS.get(question.kind, KINDS["rate"])
        heads = [f"x {first[0].name}", *further]
    head = ["system", "keeps", question.unit, *heads]
    lines = [row(head), row(["---"] * len(head))]
    return lines + [row([system.name, system.keeps, *cells_of(good, first[1])]) for system, good in rows]


def notes_about(system: System, question: Question, results: Sequence[Result]) -> list[str]:
    """What is missing, failed or went wrong in a system's runs, as sentences."""
    if system.missing:
        return [f"{system.name}: not measured, {system.missing}."]
    if question.name in system.beyond:
        return [f"{system.name}: not asked, {system.beyond[question.name]}."]
    notes = [f"{system.name}, round {r.round}: {r.problem}" for r in results if r.problem]
    notes += [f"{system.name}, round {r.round}: {fault(r.figures)}." for r in results if fault(r.figures)]
    return notes


def disturbances(results: Sequence[Result]) -> list[str]:
    """One sentence about the runs during which others used the cores, if there were any."""
    worst: dict[str, float] = {}
    for result in results:
        if result.disturbance > MAX_DISTURBANCE:
            worst[result.system] = max(result.disturbance, worst.get(result.system, 0))
    if not worst:
        return []
    shares = ", ".join(f"{system} {share:.0%}" for system, share in worst.items())
    return [f"Others used the cores, too (worst run of {shares}): trust the us/message, not the rate."]


def versions(systems: Sequence[System]) -> str:
    """One line for what is the same program."""
    names: dict[str, list[str]] = {}
    for system in systems:
        if not system.missing:
            names.setdefault(system.version, []).append(system.name)
    return "\n".join(f"- {', '.join(same)}: {version}" for version, same in names.items())
