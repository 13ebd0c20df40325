"""`tgx bench`: TGX beside stock tinygrad, PyTorch and JAX, in one run.

    cases.py      what is measured, and the targets: two tables
    models.py     the models, written once, for every framework
    sides/        one file a framework: the same dozen operations, a training step, a timed epoch
    worker.py     a process that runs one framework, told what to do over a pipe
    driver.py     starts the workers, lets them take turns, collects
    report.py     results as tables and as JSON

Every contender has a process of its own, because thread pools of several frameworks in one process
disturb each other. They take turns, so that whatever else the machine does falls on all of them.
All start from the same weights and the same batches, and all must find the same losses.

This module imports nothing: a worker should not pay for the driver.
"""
