"""Writes a stitching result as files; `index.html` needs none of the others, and nothing from elsewhere."""

from __future__ import annotations

import csv
import math
from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stitchkern.report import plots
from stitchkern.studies.result import StitchingResult

# x: the front's channels at one position of one image, y: the end's, Σ and means over all of them.
DEFINITIONS = (
    (
        "Accuracy",
        "Share of test images that the stitched network classifies correctly.",
        "a = correct / images",
    ),
    ("Relative accuracy", "That accuracy as a share of the end network’s own.", "a(stitched) / a(end)"),
    (
        "s.e.",
        "Standard error of the relative accuracy r, given that both networks saw the same n images.",
        "√(Σ (stitched correct − r · end correct)² / (n (n − 1))) / a(end)",
    ),
    (
        "Stitch",
        "The affine map of least squared error at all positions.",
        "min over W, b of Σ ‖W x + b − y‖²",
    ),
    (
        "R²",
        "Share of the end layer’s variance that the stitch explains.",
        "1 − Σ ‖W x + b − y‖² / Σ ‖y − ȳ‖²",
    ),
    ("Residual", "What the stitch leaves unexplained, summed over channels.", "mean ‖W x + b − y‖²"),
    ("Rank", "Rank of the map that the data support.", "rank W"),
    (
        "CKA",
        "Linear centred kernel alignment, every position of every image a sample.",
        "‖cov(x, y)‖² / (‖cov(x, x)‖ · ‖cov(y, y)‖)",
    ),
    (
        "CKA, unbiased",
        "The same ratio from unbiased estimates of HSIC; may be negative.",
        "HSIC₁(x, y) / √(HSIC₁(x, x) · HSIC₁(y, y))",
    ),
)


def write(result: StitchingResult, out_dir: str | Path) -> Path:
    """Write `index.html`, `layers.png`, `similarity.png`, `layers.csv`, `result.json`; return the page.

    The folder is made if need be, files of these names are replaced. Raises OSError where that fails.
    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(result.to_json(), encoding="utf-8")
    _write_csv(result, out / "layers.csv")
    title = f"How well the front of {result.front.name} drives the end of {result.end.name}"
    plots.save_png(plots.by_layer(result, title=title), out / "layers.png")
    plots.save_png(plots.heat_map(result, title="Linear CKA of all layer pairs"), out / "similarity.png")
    page = out / "index.html"
    page.write_text(html(result), encoding="utf-8")
    return page


def html(result: StitchingResult) -> str:
    """The page: one document with style and plots inside, for light and dark screens."""
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
    pictures = {}
    for theme in (plots.LIGHT, plots.DARK):
        for draw, label in (
            (plots.by_layer, "Relative accuracy, CKA and R² by layer"),
            (plots.heat_map, "Heat map of CKA"),
        ):
            name = f"{draw.__name__}_{theme.name}"
            pictures[name] = Markup(plots.to_svg(draw(result, theme), label, salt=name))
    return environment.get_template("page.html.j2").render(
        result=result, plots=pictures, definitions=DEFINITIONS, light=plots.LIGHT, dark=plots.DARK
    )


def _write_csv(result: StitchingResult, path: Path) -> None:
    rows = [asdict(pair) for pair in result.pairs]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
