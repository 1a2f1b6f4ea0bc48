"""From an archive of clips to a prepared dataset. Knows no service and no torch.

Run it by hand: ``python -m preprocessing ARCHIVE --spec spec.json --out DIR``.
"""
