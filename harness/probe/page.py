"""The probe as one self-contained HTML page: the tables, and plots as inline SVG."""

from __future__ import annotations

from html import escape

from harness.probe.comparison import DTYPES, Compared
from harness.probe.plots import Line, chart
from harness.probe.sections import Findings, Table, tables
from harness.probe.spectrum import Sweep

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; font-size: 13px; }
th, td { text-align: left; padding: 2px 10px 2px 0; border-bottom: 1px solid #8884; }
td { font-variant-numeric: tabular-nums; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 1rem; }
svg { width: 100%; height: auto; } svg text { font-size: 10px; fill: currentColor; }
svg .title { font-size: 12px; font-weight: 600; } svg .grid { stroke: #8883; }
"""


def html(found: Findings, rank: int) -> str:
    """The whole page; every text is escaped, nothing is loaded from elsewhere."""
    plots = [p for p in [*(spectrum(s, rank) for s in found.sweeps), *map(error, found.sweeps)] if p]
    plots += [p for each in found.compared for p in (by_layer(each), losses(each)) if p]
    body = "".join(map(_table, tables(found)))
    head = f'<meta charset="utf-8"><title>Probe on pretrained weights</title><style>{STYLE}</style>'
    about = f"<p>{escape(' '.join(found.about))}</p><pre>{escape(found.command)}</pre>"
    drawn = f'<h2>Plots</h2><div class="plots">{"".join(plots)}</div>' if plots else ""
    title = "<h1>Probe on pretrained weights</h1>"
    return (
        f'<!doctype html><html lang="en"><head>{head}</head><body>{title}{about}{drawn}{body}</body></html>\n'
    )


def spectrum(sweep: Sweep, rank: int) -> str:
    """The singular values: those that PiSSA's factors keep, and those left to the residual."""
    places = [float(i + 1) for i in range(len(sweep.singular))]
    kept = Line(f"in the factors (rank {rank})", places[:rank], sweep.singular[:rank], fill=True)
    lost = Line("in the residual", places[rank:], sweep.singular[rank:], fill=True)
    return chart(f"Singular values of {sweep.layer}", [kept, lost], "index", log_y=False)


def error(sweep: Sweep) -> str:
    """The weight's error over ranks, factors in float32 and in bfloat16."""
    ranks = [float(r) for r in sweep.ranks]
    lines = [Line("factors bf16", ranks, sweep.narrow), Line("factors fp32", ranks, sweep.wide)]
    return chart(f"PiSSA's error in bf16, {sweep.layer}", lines, "rank", log_x=True)


def by_layer(each: Compared) -> str:
    """Each adapted layer's gap at the start, in each dtype; an exact layer lies on the floor."""
    lines = []
    for side in (each.subject, each.peft):
        for dtype in DTYPES:
            values = list(side.by_layer.get(dtype, {}).values())
            if any(values):
                lines.append(Line(f"{side.who} {dtype}", [float(i) for i in range(len(values))], values))
    return chart(f"{each.spec.variant}: ‖Δy‖ / ‖y‖ by layer at step 0", lines, "adapted layer")


def losses(each: Compared) -> str:
    """Both losses over the steps."""
    lines = [
        Line(s.who, [float(i) for i in range(len(s.losses))], s.losses) for s in (each.subject, each.peft)
    ]
    return chart(f"{each.spec.variant}: loss", lines, "step", log_y=False)


def _table(table: Table) -> str:
    heads = "".join(f"<th>{escape(h)}</th>" for h in table.heads)
    rows = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in table.rows)
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    return f"<h2>{escape(table.title)}</h2>{note}<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
