"""A report of the benchmark as tables: heads and rows of plain text, for whoever prints them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # title, heads, rows

ROLES = ("tgx", "stock", "torch", "jax")
HEADS = {"tgx": "TGX", "stock": "stock", "torch": "PyTorch", "jax": "JAX"}


def tables(report: dict[str, Any]) -> list[Table]:
    """Times, ratios, CPU seconds, memory, targets."""
    return [times(report), ratios(report), cpu(report), memory(report), targets(report)]


def best(report: dict[str, Any], case: dict[str, Any], role: str) -> tuple[str, dict[str, Any]]:
    """The faster contender of a role, and its result; of stock's two renderers, say."""
    found = [
        (c["name"], case["results"][c["name"]])
        for c in report["contenders"]
        if c["role"] == role and "median" in case["results"].get(c["name"], {})
    ]
    return min(found, key=lambda pair: pair[1]["median"], default=("", {}))


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.3g}"


def roles(report: dict[str, Any]) -> list[str]:
    here = {c["role"] for c in report["contenders"] if not c["missing"]}
    return [role for role in ROLES if role in here]


def times(report: dict[str, Any]) -> Table:
    rows = []
    for case in report["cases"]:
        row = [case["name"]]
        for role in roles(report):
            name, result = best(report, case, role)
            if not result:
                row.append("-")
                continue
            text = f"{milliseconds(result['median'])} ({milliseconds(result['min'])})"
            gflop = 2e-9 * case["shape"][0] * case["shape"][1] * case["shape"][2]
            if gflop:
                text += f" {gflop / result['median']:.0f} GFLOP/s"
            row.append(f"{text} {name.split()[-1]}" if role == "stock" else text)
        rows.append(row)
    return "ms: median (minimum)", ["", *(HEADS[role] for role in roles(report))], rows


def ratios(report: dict[str, Any]) -> Table:
    shown = [role for role in roles(report) if role != "tgx"]
    rows = [
        [
            case["name"],
            *(f"{case['ratios'][r]:.2f}" if r in case["ratios"] else "-" for r in shown),
            "yes" if case["agree"] else "NO",
        ]
        for case in report["cases"]
    ]
    heads = ["", *(f"{HEADS[r]} / TGX" for r in shown), "same results"]
    return "ratios of medians: above 1, TGX is faster", heads, rows


def cpu(report: dict[str, Any]) -> Table:
    """What a step cost all threads together: on a busy machine it says more than wall time."""
    rows = []
    for case in report["cases"]:
        found = [best(report, case, role)[1] for role in roles(report)]
        cells = [milliseconds(result["cpu"]) if result else "-" for result in found]
        rows.append([case["name"], *cells])
    heads = ["", *(HEADS[role] for role in roles(report))]
    return "ms of CPU time a step, all threads, waiting in a loop included", heads, rows


def memory(report: dict[str, Any]) -> Table:
    rows = []
    for case in report["cases"]:
        found = [best(report, case, role)[1] for role in roles(report)]
        if any("resident" in result for result in found):
            cells = [
                f"{result['resident'] / 2**20:.0f} ({result['held'] / 2**20:.1f})"
                if "resident" in result
                else "-"
                for result in found
            ]
            rows.append([case["name"], *cells])
    heads = ["", *(HEADS[role] for role in roles(report))]
    return "MiB: resident (in buffers, where the framework counts)", heads, rows


def targets(report: dict[str, Any]) -> Table:
    words = {True: "met", False: "MISSED", None: "not measured"}
    against = HEADS | {"peers": "better of PyTorch, JAX"}
    rows = []
    for row in report["targets"]:
        limit = row["against"] == "cpu"
        reached = "" if row["reached"] is None else f"{row['reached']:.2f}"
        wanted = f"≤ {row['wanted']:g} s of CPU" if limit else f"≥ {row['wanted']:g}"
        rows.append(
            [row["case"], against.get(row["against"], ""), wanted, reached, words[row["met"]]]
        )
    return "targets", ["", "against", "wanted", "reached", ""], rows
