"""Answers given again to who asks the same in other words, at a rate of wrong ones that the user sets.

A request belongs to exactly one *scope*: all that decides about its answer but the words of the last message (question.py).
Only within a scope is anything looked for (index.py, scopes.py), and only what the verifier finds to ask the same is given
(stage.py). How often that was wrong is measured while it runs, and the bar follows (meter.py). books.py and disk.py keep
it all over restarts and share it with other workers and hosts.
"""
