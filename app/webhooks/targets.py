"""Where webhooks may be sent: the rules of downloads, with lists of their own."""

from collections.abc import Sequence
from typing import Final

from app.errors import InvalidInput
from app.fetch import AddressRefused, FetchPolicy, UrlRefused
from app.fetch.addresses import IPAddress
from app.fetch.policy import Target, system_resolver
from app.settings import Settings

LOC: Final = ("query", "fal_webhook")


class NameUnknown(Exception):
    """The receiver's name is not found, now: name servers have bad days, so another try helps."""


class TargetRefused(Exception):
    """The URL leads where webhooks are not sent. Its text is for the user."""


def resolve(host: str, port: int) -> Sequence[IPAddress]:
    """`system_resolver`, its failure told apart from an address that is refused."""
    try:
        return system_resolver(host, port)
    except (OSError, UnicodeError) as error:
        raise NameUnknown from error


def policy_of(settings: Settings) -> FetchPolicy:
    """The operator's rules for receivers."""
    return FetchPolicy.allowing(
        settings.webhook_allow_private_hosts, settings.webhook_extra_ports, resolve
    )


def check(policy: FetchPolicy, url: str) -> Target:
    """Take ``url`` apart, looking nothing up. Raises `TargetRefused`."""
    try:
        return policy.check(url)
    except UrlRefused as error:
        raise TargetRefused(refusal(error)) from error


def refusal(error: UrlRefused) -> str:
    """What to tell the user."""
    if isinstance(error, AddressRefused):
        return (
            "The webhook's host is not on the public internet. The operator of this service can "
            "allow it: REELSMITH_WEBHOOK_ALLOW_PRIVATE_HOSTS."
        )
    if "port" in error.message:
        return f"{error.message} The operator can allow more: REELSMITH_WEBHOOK_EXTRA_PORTS."
    return error.message


class WebhookCheck:
    """Refuses at submit what can be told from a webhook's URL alone."""

    def __init__(self, policy: FetchPolicy) -> None:
        self._policy = policy

    @classmethod
    def of(cls, settings: Settings) -> "WebhookCheck":
        return cls(policy_of(settings))

    def __call__(self, url: str) -> None:
        """Raises `InvalidInput`."""
        try:
            check(self._policy, url)
        except TargetRefused as error:
            raise InvalidInput.at(LOC, str(error), "value_error") from None
