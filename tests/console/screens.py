"""Every screen of the console, by name: what the tests and the screenshots go through."""

from collections.abc import Mapping

SCREENS: dict[str, str] = {
    "overview": "/console",
    "new": "/console/new",
    "new-t2v": "/console/new/t2v",
    "new-outpaint": "/console/new/outpaint",
    "new-inpaint": "/console/new/inpaint",
    "new-extend-suffix": "/console/new/extend-suffix",
    "again": "/console/new/t2v?from={done}",
    "check": "/console/check",
    "check-t2v": "/console/check/t2v",
    "generate": "/console/generate",
    "history": "/console/requests",
    "history-empty": "/console/requests?search=nothing+has+this",
    "queued": "/console/requests/{queued}",
    "running": "/console/requests/{running}",
    "done": "/console/requests/{done}",
    "failed": "/console/requests/{failed}",
    "cancelled": "/console/requests/{cancelled}",
    "checked": "/console/requests/{check}",
    "report": "/console/requests/{check}/report",
    "report-refused": "/console/requests/{failed}/report",
    "compare": "/console/compare?id={done}&id={other}",
    "compare-one": "/console/compare?id={done}",
    "usage": "/console/usage",
    "webhooks": "/console/webhooks",
    "login": "/console/login",
}


def path_of(name: str, ids: Mapping[str, str]) -> str:
    return SCREENS[name].format(**ids)
