"""``fleet report DIR``: summary.json, report.md and report.html again, from the raw runs alone.

Knows: which files there are. Does not know: what stands in them.
"""

from __future__ import annotations

from fleet.errors import BadSetting
from fleet.tune import summary as summaries
from fleet.tune.page import page
from fleet.tune.raw import Folder
from fleet.tune.session import written
from fleet.tune.summary import Summary
from fleet.tune.words import markdown


def write(folder: Folder) -> Summary:
    """The same bytes each time. Raises BadSetting when the raw data is not what was measured."""
    campaign, records = folder.campaign(), folder.records()
    if not records:
        raise BadSetting(f"nothing has been measured in {folder.path}", "python -m fleet tune goes on with it")
    found = summaries.summarise(campaign, records, written(folder))
    folder.write("summary.json", summaries.to_json(found))
    folder.write("report.md", markdown(found).encode())
    folder.write("report.html", page(found).encode())
    return found
