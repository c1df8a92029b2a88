"""The doctor: findings from facts, each with its remedy. Pure: `bester check`, the page and the metrics gather facts.

`live.py` finds from the status of a running server, `local.py` from facts about files and machine; `table.py` lists all
checks, and a test compares docs/operating.md with the list.
"""
