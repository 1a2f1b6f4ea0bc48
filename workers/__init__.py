"""Celery tasks: claim a request, prepare or train it in a child process, upload, finish.

A task holds nothing that its death could lose: the row says what is to be done, the store holds
what was done so far. See `docs/architecture.md`.
"""

from workers.exposed import keep_counts_in_files

keep_counts_in_files()
