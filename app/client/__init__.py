"""The service's user at a terminal: `reelsmith submit`, `status`, `result` and the rest.

Everything goes over HTTP, so the service may run anywhere. No torch, no media library.
"""
