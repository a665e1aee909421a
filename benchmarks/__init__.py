"""How fast this project is, measured beside its peers: `python -m benchmarks`, or `make bench`.

A part is one line of the table. Its contestants do the same work on the same input with the same weights, take turns
in one process, and are timed only after their outputs were found to agree.
"""
