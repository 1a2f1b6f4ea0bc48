"""From a prepared dataset to a LoRA, previews and generation. Knows no service.

Run it by hand: ``python -m trainer run JOB_DIR`` (see `trainer/job.py` for what is in one).
"""
