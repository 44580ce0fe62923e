"""What every report is made with: the page from its template, pictures for files and for pages, CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from stitchkern.plotting import DARK, LIGHT, Theme

# Of all reports: what one leaves behind would be taken for a part of the next.
FILES = (
    "index.html", "result.json",
    "layers.csv", "layers.png", "ranks.csv", "ranks.png", "similarity.csv", "similarity.png",
)  # fmt: skip


def new_folder(path: str | Path) -> Path:
    """Make the folder, without what another report left in it; other files stay."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    return folder


def render(template: str, drawn: Mapping[str, tuple[Callable[[Theme], Figure], str]], **values: Any) -> str:
    """One document with style and plots inside, for light and dark screens.

    `drawn`: by name, what draws a picture for a theme, and what the picture shows, in words.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters.update(
        percent=lambda v: f"{100 * v:.1f}\N{NO-BREAK SPACE}%" if math.isfinite(v) else "undefined",
        fixed=lambda v: f"{v:.3f}".replace("-", "−") if math.isfinite(v) else "–",
        magnitude=lambda v: f"{v:.3f}" if 1e-3 <= v < 1e4 else f"{v:.2e}" if math.isfinite(v) else "–",
        thousands=lambda v: f"{v:,}",
        width=lambda v: f"{100 * min(max(v, 0.0), 1.0):.1f}" if math.isfinite(v) else "0",
    )
    pictures = {name: Markup(_figure(name, draw, words)) for name, (draw, words) in drawn.items()}
    return environment.get_template(template).render(plots=pictures, light=LIGHT, dark=DARK, **values)


def save_png(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", dpi=160, metadata={"Software": None})


def to_svg(figure: Figure, label: str, salt: str) -> str:
    """An `<svg>` element for inline use: text stays text, nothing but the picture; `salt` keeps ids apart."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    attributes = f'role="img" aria-label="{_attribute(label)}" style="max-width:{figure.get_figwidth() * 100:.0f}px"'
    return svg.replace("<svg ", f"<svg {attributes} ", 1)


def write_csv(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """One line for each row, of which there is one at least, under their common names."""
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _figure(name: str, draw: Callable[[Theme], Figure], words: str) -> str:
    """The picture of each theme; the page's style shows one of them."""
    pictures = [
        f'<div class="{theme.name}">{to_svg(draw(theme), words, f"{name}_{theme.name}")}</div>'
        for theme in (LIGHT, DARK)
    ]
    return "\n".join(["<figure>", *pictures, "</figure>"])


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
