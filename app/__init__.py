"""The service: modes, requests, storage, keys, gateway. No torch, no media library."""
