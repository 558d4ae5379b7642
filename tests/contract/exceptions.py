"""The one place for what a kind of method cannot promise."""

from limbeck.methods.index import Method

EXCEPTIONS: dict[str, dict[str, str]] = {}
"""Name of a contract test -> task of the methods it cannot hold for -> the reason, which pytest shows."""


def needs_claim(method: Method) -> bool:
    """A paper must claim something; what papers are compared with may."""
    return method.kind == "paper"
