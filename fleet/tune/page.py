"""report.html: the words and the pictures in one file that needs no network.

Knows: as much Markdown as words.py writes. Does not know: numbers.
"""

from __future__ import annotations

import html
import re

from fleet.tune import pictures
from fleet.tune.summary import Summary
from fleet.tune.words import markdown

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-size:.85rem;display:block;overflow-x:auto}td,th{border:1px solid #ccc;padding:.25rem .5rem}
th{background:#f3f3f3;text-align:left}svg{max-width:100%;height:auto}code{background:#f3f3f3}"""


def page(summary: Summary) -> str:
    """The whole document."""
    series, plan = summary.series[summary.best], summary.campaign.plan
    drawn = [pictures.chances(series), pictures.scaling(series, plan), pictures.latency(series, plan)]
    title = html.escape(summary.campaign.name)
    body = body_of(markdown(summary))
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    head += f"<style>{STYLE}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n{body}\n{"".join(drawn)}\n</body></html>\n'


def body_of(text: str) -> str:
    """Headings, tables, lists and paragraphs of our own reports as HTML."""
    blocks: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.splitlines()
        if lines[0].startswith("#"):
            level = len(lines[0]) - len(lines[0].lstrip("#"))
            blocks.append(f"<h{level}>{_inline(lines[0].lstrip('# '))}</h{level}>")
            continue
        if lines[0].startswith("|"):
            blocks.append(_table(lines))
        elif re.match(r"(- |\d+\. )", lines[0]):
            items = "".join(f"<li>{_inline(re.sub(r'^(- |[0-9]+[.] )', '', line))}</li>" for line in lines)
            blocks.append(f"<ol>{items}</ol>" if lines[0][0].isdigit() else f"<ul>{items}</ul>")
        else:
            blocks.append(f"<p>{_inline(' '.join(lines))}</p>")
    return "\n".join(blocks)


def _table(lines: list[str]) -> str:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    head = "".join(f"<th>{_inline(cell)}</th>" for cell in cells[0])
    body = "".join(f"<tr>{''.join(f'<td>{_inline(cell)}</td>' for cell in row)}</tr>" for row in cells[2:])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _inline(text: str) -> str:
    safe = html.escape(text, quote=False)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", safe))
