"""Applying a pass's recorded steps again: what the explorer shows is what happened."""

from __future__ import annotations

from tgx.model import STEP_KINDS, Graph, Pass, Trace

# bodies of calls are not entered by a pass, see tinygrad's RewriteContext
BODIES = {"SINK", "PROGRAM", "LINEAR", "COPY", "CUSTOM_FUNCTION"}


class ReplayError(ValueError):
    """The steps do not lead from the graph before to the graph after."""


def replay(trace: Trace, p: Pass) -> int:
    """The row of the graph that a pass's steps make of the graph before it.

    Equal to ``p.after`` if every step was recorded. Steps say what a rule made of a node and what a
    node was rebuilt as; which of them apply, and in which order, is worked out from the graph
    before.
    """
    table = trace.graph(p.table)
    match: dict[int, int] = {}
    rebuild: dict[int, int] = {}
    for step in p:
        (match if step.kind == STEP_KINDS[0] else rebuild)[step.old] = step.new
    return _resolve(table, p, match, rebuild)


def _resolve(table: Graph, p: Pass, match: dict[int, int], rebuild: dict[int, int]) -> int:
    final: dict[int, int] = {}
    stack = [p.before]
    patience = 100 * len(table) + 1000
    while stack:
        patience -= 1
        if patience < 0:
            raise ReplayError(f"pass {p.id}: its steps go round in circles")
        n = stack[-1]
        if n in final:
            stack.pop()
            continue
        target = match.get(n) if p.bottom_up else None
        if target is not None and p.walk:
            final[n] = target
            continue
        if target is None:
            sources = _entered(table, n)
            missing = [s for s in sources if s not in final]
            if missing:
                stack.extend(reversed(missing))
                continue
            if any(final[s] != s for s in sources):
                if n not in rebuild:
                    raise ReplayError(f"pass {p.id}: node {n} has new sources, no step for it")
                target = rebuild[n]
                if p.walk:
                    final[n] = target if p.bottom_up else match.get(target, target)
                    continue
            elif not p.bottom_up:
                target = match.get(n)
                if target is not None and p.walk:
                    final[n] = target
                    continue
        if target is None or target == n:
            final[n] = n
        elif target in final:
            final[n] = final[target]
        else:
            stack.append(target)
    return final[p.before]


def _entered(table: Graph, n: int) -> tuple[int, ...]:
    src = table.src(n)
    op = table.ops[n]
    if src and (op == "FUNCTION" or (op == "CALL" and table.ops[src[0]] in BODIES)):
        return src[1:]
    return src
