"""The API key that this side shows to a fleet that wants one: the environment variable FLEET_API_KEY.

Knows: where the key is, and how it is shown. Does not know: who asks for what. The load scripts read the same variable.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

VARIABLE: Final = "FLEET_API_KEY"  # not KRONOS_…: workers refuse settings that they do not know


def headers(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The header that shows the key; none without one."""
    key = env.get(VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}
