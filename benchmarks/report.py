"""One self-contained HTML page: environment, every table, every figure, the claim, and what did not repeat."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator
from pathlib import Path

from benchmarks import claim, sections, tables
from benchmarks.records import Records, only

FIGURE_OF = {
    "ops": "ops",
    "networks": "networks",
    "frame": "frame",
    "techniques": "techniques",
    "throughput": "throughput",
}
_STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { margin-top: 2.5rem; border-bottom: 1px solid #d8dee8 }
.wide { overflow-x: auto } img { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: 13px; white-space: nowrap }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #e8ecf2; text-align: left }
.number { text-align: right; font-variant-numeric: tabular-nums } th { background: #f5f7fa }
"""


def write(records: Records, figures: dict[str, bytes], path: Path) -> Path:
    """Write the page and return its path."""
    path.write_text(page(records, figures))
    return path


def page(records: Records, figures: dict[str, bytes]) -> str:
    """The page as text; figures are inside it, nothing is loaded from anywhere."""
    device = html.escape(str(only(records).environment.get("device", "")))
    body = "\n".join(_body(records, figures))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>lpkernels on {device}</title>'
        f"<style>{_STYLE}</style></head><body><h1>lpkernels on {device}</h1>\n{body}\n</body></html>\n"
    )


def _body(records: Records, figures: dict[str, bytes]) -> Iterator[str]:
    yield (
        "<p>Providers of a subject are timed in turn in one process (A B C A B C). Every time has its relative error "
        "against FP32 beside it; a provider beyond its tolerance has no time. Rates are those of the published work "
        "over measured time; shares are of ceilings measured in the same run. Peak memory is what grows while a "
        "provider is built, its own weights included, and makes its first calls.</p>"
    )
    yield _section("Machine and runs", sections.environment(records))
    yield _section("Ceilings", sections.ceilings(records))
    for level, title in sections.TITLES.items():
        measurements = records.level(level)
        if not measurements:
            continue
        yield f"<h2>{html.escape(title)}</h2>"
        if figure := figures.get(FIGURE_OF.get(level, "")):
            yield _image(figure, title)
        if (compared := sections.compared(records, level)) is not None:
            yield f'<div class="wide">{compared.html()}</div>'
        yield f'<div class="wide">{sections.of_level(records, level).html()}</div>'
    for name, title in (("roofline", "Roofline"), ("warmup", "Warm-up")):
        if figure := figures.get(name):
            yield f"<h2>{title}</h2>{_image(figure, title)}"
    yield _section("Skipped", tables.skipped(records.measurements))
    yield _section(
        "First calls and memory", tables.memory_and_warmup(records.level("networks") + records.level("frame"))
    )
    if (claimed := claim.table(records)) is not None:
        yield f"<h2>The published claim, examined</h2><p>{html.escape(claim.CLAIM)}</p>"
        yield f'<div class="wide">{claimed.html()}</div>'
        yield "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in claim.remarks(records)) + "</ul>"
    yield "<h2>Repeatability</h2>" + "".join(f"<p>{html.escape(text)}</p>" for text in sections.repeatability(records))


def _section(title: str, table: tables.Table) -> str:
    return f'<h2>{html.escape(title)}</h2><div class="wide">{table.html()}</div>' if table.rows else ""


def _image(data: bytes, title: str) -> str:
    return f'<p><img alt="{html.escape(title)}" src="data:image/png;base64,{base64.b64encode(data).decode()}"></p>'
