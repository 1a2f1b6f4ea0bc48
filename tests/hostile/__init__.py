"""Hostile inputs, by the numbers of `spec/reliability.md` section 4. See README.md."""
