"""The lineage of versions as a picture (SVG). Pure."""

from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from cprec.tracking.lineage_graph import Edge, LineageGraph, Node

WIDTH, HEIGHT = 150, 46
"""Size of a node."""

COLUMN, ROW = 200, 68
"""From one node to the next."""

MARGIN = 4
FILLS = {
    "base": "#f4f5f2",
    "corpus": "#fff7e8",
    "trunk": "#e4ebfa",
    "branch": "#e9f4ec",
    "fine-tuned": "#f6eaf2",
}
MAX_TEXT = 20
"""Characters of a line in a node."""

PICTURE = Markup(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
    'style="max-width: {width}px; min-width: {least}px" font-family="inherit" font-size="12">'
    "<title>Lineage of the versions</title>{content}</svg>"
)
PATH = Markup('<path d="{d}" fill="none" stroke="#8a8f98" stroke-width="1.4" {dashes}/>')
NODE = Markup(
    '<g><title>{hover}</title><rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" '
    'fill="{fill}" stroke="{stroke}" stroke-width="{line}"/>'
    '<text x="{text_x}" y="{first}" font-weight="600" fill="#1d2024">{title}</text>'
    '<text x="{text_x}" y="{second}" fill="#5f656d" font-size="11">{subtitle}</text></g>'
)


def draw_lineage(graph: LineageGraph) -> str:
    """Draws a graph; all text is escaped."""
    width = graph.columns * COLUMN - (COLUMN - WIDTH) + 2 * MARGIN
    height = graph.rows * ROW - (ROW - HEIGHT) + 2 * MARGIN
    places = {node.key: _place(node) for node in graph.nodes}
    content = Markup("").join([*_draw_edges(graph.edges, places), *map(_draw_node, graph.nodes)])
    return PICTURE.format(width=width, height=height, least=min(width, 640), content=content)


def _place(node: Node) -> tuple[int, int]:
    """Returns the upper left corner of a node."""
    return MARGIN + node.column * COLUMN, MARGIN + node.row * ROW


def _draw_edges(edges: Sequence[Edge], places: Mapping[str, tuple[int, int]]) -> Iterator[Markup]:
    for edge in edges:
        (x0, y0), (x1, y1) = places[edge.start], places[edge.end]
        if edge.is_corpus:  # from below a corpus version to above the version
            x0, y0, x1 = x0 + WIDTH // 2, y0 + HEIGHT, x1 + WIDTH // 2
            middle, dashes = (y0 + y1) // 2, Markup('stroke-dasharray="3 4"')
            bend = f"{x0} {middle} {x1} {middle}"
        else:
            x0, y0, y1 = x0 + WIDTH, y0 + HEIGHT // 2, y1 + HEIGHT // 2
            middle, dashes = (x0 + x1) // 2, Markup("")
            bend = f"{middle} {y0} {middle} {y1}"
        yield PATH.format(d=f"M{x0} {y0} C{bend} {x1} {y1}", dashes=dashes)


def _draw_node(node: Node) -> Markup:
    x, y = _place(node)
    aliases = ", ".join(node.aliases)
    subtitle = aliases or node.subtitle or node.kind
    is_champion = "champion" in node.aliases
    return NODE.format(
        hover=", ".join(part for part in (node.title, node.kind, node.subtitle, aliases) if part),
        x=x,
        y=y,
        width=WIDTH,
        height=HEIGHT,
        fill=FILLS[node.kind],
        stroke="#2456c9" if is_champion else "#c9cbc7",
        line=2.2 if is_champion else 1,
        text_x=x + 10,
        first=y + 19,
        second=y + 35,
        title=_shorten(node.title),
        subtitle=_shorten(subtitle),
    )


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
