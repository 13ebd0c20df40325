"""Puzzle 1: Guard

A kernel is a function that many threads run at once, each with its own number.
This one adds 10 to every number of `a`. It is started with 8 threads, but `a`
and `out` have only `size` numbers, 5 for example. A thread without a number of
its own must not touch anything.

The picture is puzzle_1.svg. `tgx puzzle 1` checks this file,
`tgx puzzle 1 --hint` helps.
"""

def kernel(thread, out, a, size):
    ...
