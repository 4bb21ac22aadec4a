"""A simulated model provider: a real server process that speaks OpenAI's wire on loopback.

`python -m turnout.upstream.simulator` is the process (`__main__`), `launch.Simulator` starts
and stops it. Inside, from the bytes inwards:

    server   HTTP/1.1 connections; one task per request        (asyncio, httptools)
    serve    one request: pace, faults, writing                 (the only file that waits)
    provider what one provider remembers: counters, dice, faults
    answers  request -> answer -> JSON bodies and SSE events    (pure)
    asks     the requests' typed view                           (pure)
    faults, prose, schema, vectors                              (pure)

It is used by `turnout demo`, by configs with providers of kind `simulated` and by tests.
It is not the load generator's mock upstream: that one lives in `bench/` and is faster.
"""
