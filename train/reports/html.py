"""Makes self-contained HTML pages: tables and pictures, no scripts, fit for paper."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path


def page(title: str, parts: Iterable[str]) -> str:
    """Makes a complete page from parts that are HTML already."""
    return _TEMPLATE.format(title=html.escape(title), body="\n".join(parts))


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Makes a table; the first column is left-aligned, the others, mostly numbers, are not."""
    cells = lambda tag, texts: "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)
    head = f"<thead><tr>{cells('th', header)}</tr></thead>" if header else ""
    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    text = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{text}{head}<tbody>{body}</tbody></table>"


def preformatted(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def figure(caption: str, path: Path) -> str:
    """Embeds a PNG."""
    data = base64.b64encode(path.read_bytes()).decode()
    text = html.escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def side_by_side(figures: Iterable[str]) -> str:
    """Puts figures in a row, or in several where the page is narrow."""
    return f'<div class="row">{"".join(figures)}</div>'


_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto;
  padding: 0 1rem; color: #111; background: #fff; }}
h2 {{ margin-top: 2.5rem; border-bottom: 1px solid #999; }}
p {{ max-width: 50rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem;
  margin: 1rem 0; }}
caption {{ text-align: left; color: #444; padding-bottom: 0.3rem; }}
th, td {{ padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid #ccc;
  vertical-align: top; }}
th:first-child, td:first-child {{ text-align: left; }}
figure {{ margin: 1.5rem 0; max-width: 48rem; }} img {{ max-width: 100%; }}
.row {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.5rem; }}
.row figure {{ margin: 0.5rem 0; }}
figcaption, footer {{ color: #444; font-size: 0.9rem; }}
pre {{ font-size: 0.8rem; white-space: pre-wrap; columns: 22rem; }}
@media print {{ body {{ font-size: 10pt; margin: 0; }} figure, table {{ break-inside: avoid; }}
  h2 {{ break-after: avoid; }} }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""
