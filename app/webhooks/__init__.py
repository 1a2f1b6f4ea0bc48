"""Tells a request's receiver that it has ended (`fal-protocol.md` 2.8; docs/webhooks.md)."""

from app.webhooks.deliverer import Deliverer
from app.webhooks.endpoints import make_router
from app.webhooks.keys import KeyRing
from app.webhooks.sender import Sender
from app.webhooks.targets import WebhookCheck, policy_of

__all__ = ["Deliverer", "KeyRing", "Sender", "WebhookCheck", "make_router", "policy_of"]
