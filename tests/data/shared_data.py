"""The real data sets that some tests read."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("LIMBECK_DATA", ""))

needs_shared = pytest.mark.skipif(
    not os.environ.get("LIMBECK_DATA"), reason="reads real data: set LIMBECK_DATA to the folder that holds it"
)
