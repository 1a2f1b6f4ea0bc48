"""The browser console at ``/console``: pages made here, from what the public API answers.

It has no access of its own: every page asks the routes that any client may ask, as the person who
looks (`api.py`). So what the console shows, a script can have, and a key's limits hold here too.
"""
