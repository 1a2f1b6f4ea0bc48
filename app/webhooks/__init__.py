"""Tells a request's receiver that it has ended (`fal-protocol.md` 2.8; docs/webhooks.md)."""
