"""What one looks at beside results: curves, logs, live changes, workers, usage, the day so far.

Routes of the public API. The console (`app/console/`) shows nothing that they don't offer.
"""
