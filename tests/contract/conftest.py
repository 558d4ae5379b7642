import pytest

from limbeck.methods.index import METHODS
from tests.contract.exceptions import EXCEPTIONS


@pytest.fixture(autouse=True)
def excepted(request: pytest.FixtureRequest) -> None:
    """Skips a contract where the one list of exceptions gives a reason, and says it."""
    slug = getattr(request.node, "callspec", None) and request.node.callspec.params.get("slug")
    reason = EXCEPTIONS.get(request.node.originalname, {}).get(METHODS[slug].task if slug else "")
    if reason:
        pytest.skip(reason)
