"""What the workers of one host count together: rows of cells by name, see `twin/counters.py` for what a cell can do.

With the extension they lie in shared memory (`native.Counters`), changed by atomic operations. Without it several
workers go through one small state process on a Unix socket (`process.py`, `remote.py`), and one worker keeps its own.

What they keep for each other (the cache's answers, and who is asking for one) lies on the board, another small process:
`board_process.py`, `board.py`.
"""
