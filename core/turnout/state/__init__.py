"""What the workers of one host count together: rows of cells by name, see `twin/counters.py` for what a cell can do.

With the extension they lie in shared memory (`native.Counters`), changed by atomic operations. Without it several
workers go through one small state process on a Unix socket (`process.py`, `remote.py`), and one worker keeps its own.

What hosts have together goes through Redis, where one is configured: `depot.py` is the client, over `lane.py` (a connection
with deadlines and a breaker), `nodes.py` (which one), `dial.py` (redis-py) and `ear.py` (who waits for a key).

What they keep for each other (the cache's answers, and who is asking for one) lies on the board, another small process:
`board_process.py`, `board.py`; `pours.py` are the streams that one worker lets others read while they come. `link.py` is what both kinds of process and their workers need of a socket.
"""
