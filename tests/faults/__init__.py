"""The real service as processes, faults by a seeded plan, and a judge who looks from outside.

`make faults` and `python -m tests.faults --help`; what it found is in docs/reliability.md.
"""
