"""The lineage of registered versions as a graph: base, corpus versions, trunk, branches. Pure.

Each node has a column and a row, so that whoever draws it only multiplies.
"""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cprec.tracking.registry import PARENT_CHECKPOINT_TAG, Version

Kind = Literal["base", "corpus", "trunk", "branch", "fine-tuned"]

CORPUS_ROW = 0
"""Row of the corpus versions; those of a base and what came of it are below."""


@dataclass(frozen=True)
class Node:
    """A node of the graph.

    Attributes:
        key: Its name in edges.
        kind: What it is.
        title: What it is called.
        subtitle: Run of a version; empty for others.
        column: Steps from its base.
        row: Line of descent.
        aliases: Aliases of a version.
        model: Registered model of a version; empty for others.
        number: Number of a version; None for others.
    """

    key: str
    kind: Kind
    title: str
    subtitle: str
    column: int
    row: int
    aliases: Sequence[str] = ()
    model: str = ""
    number: int | None = None


@dataclass(frozen=True)
class Edge:
    """From what a version goes on from, or a corpus version that it took up, to the version."""

    start: str
    end: str
    is_corpus: bool = False


@dataclass(frozen=True)
class LineageGraph:
    """The graph, and how many columns and rows it has."""

    nodes: Sequence[Node]
    edges: Sequence[Edge]
    columns: int
    rows: int


Aliases = Mapping[str, Mapping[str, int]]
"""Numbers by alias, by registered model."""


def find_kind(version: Version) -> Kind:
    """Returns what made a version."""
    if version.tags.get("kind") == "finetuned":
        return "fine-tuned"
    return "branch" if "-anneal-" in posixpath.basename(version.run) else "trunk"


def find_parent_run(version: Version) -> str:
    """Returns the run (URI) whose checkpoint a version goes on from; empty: from the base."""
    checkpoint = version.tags.get(PARENT_CHECKPOINT_TAG) or version.tags.get("start", "")
    return checkpoint.rsplit("/", 2)[0] if "/" in checkpoint else ""


def find_parents(versions: Sequence[Version]) -> list[int | None]:
    """Finds the version that each one goes on from: of that checkpoint, else of its run.

    Args:
        versions: The versions, each after those that it may go on from.

    Returns:
        The position of each one's parent; None: from the base, or not known. A parent comes
        earlier, so there is no circle.
    """
    return [_find_parent(version, versions[:i]) for i, version in enumerate(versions)]


def _find_parent(version: Version, earlier: Sequence[Version]) -> int | None:
    checkpoint = version.tags.get(PARENT_CHECKPOINT_TAG) or version.tags.get("start")
    parent_run = find_parent_run(version)
    exact = [i for i, v in enumerate(earlier) if v.checkpoint == checkpoint]
    of_run = [i for i, v in enumerate(earlier) if parent_run and v.run == parent_run]
    found = exact or of_run
    return found[-1] if found else None


@dataclass
class _Layout:
    """Puts nodes into columns and rows as they come."""

    nodes: list[Node] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    rows: int = CORPUS_ROW + 1

    def place_tree(self, node: int, column: int, row: int, graph: "_Forest") -> None:
        """Places a version and what came of it: its first child beside it, others below."""
        self.nodes.append(graph.node(node, column, row))
        for i, child in enumerate(graph.children(node)):
            child_row = row if i == 0 else self.rows
            self.rows = max(self.rows, child_row + 1)
            self.edges.append(Edge(graph.key(node), graph.key(child)))
            self.place_tree(child, column + 1, child_row, graph)


@dataclass(frozen=True)
class _Forest:
    versions: Sequence[Version]
    parents: Sequence[int | None]
    aliases: Aliases

    def key(self, i: int) -> str:
        return f"{self.versions[i].model}/{self.versions[i].number}"

    def children(self, parent: int) -> list[int]:
        return [i for i, found in enumerate(self.parents) if found == parent]

    def node(self, i: int, column: int, row: int) -> Node:
        version = self.versions[i]
        aliases = self.aliases.get(version.model, {})
        is_own = version.model == self.versions[0].model
        return Node(
            self.key(i),
            find_kind(version),
            f"Version {version.number}" if is_own else f"{version.model} {version.number}",
            posixpath.basename(version.run),
            column,
            row,
            [alias for alias, number in aliases.items() if number == version.number],
            version.model,
            version.number,
        )


def build_lineage_graph(versions: Sequence[Version], aliases: Aliases) -> LineageGraph:
    """Builds the graph of the versions of a model, and of those fine-tuned from it.

    Args:
        versions: The versions, each after those that it may go on from.
        aliases: Their aliases.
    """
    parents = find_parents(versions)
    forest, layout = _Forest(versions, parents, aliases), _Layout()
    for base in dict.fromkeys(_base_of(version) for version in versions):
        roots = [
            i
            for i, version in enumerate(versions)
            if parents[i] is None and _base_of(version) == base
        ]
        if not roots:
            continue
        name = posixpath.basename(base.rstrip("/")) or "base not recorded"
        row = layout.rows
        layout.nodes.append(Node(f"base/{base}", "base", name, "", 0, row))
        for i, root in enumerate(roots):
            root_row = row if i == 0 else layout.rows
            layout.rows = max(layout.rows, root_row + 1)
            layout.edges.append(Edge(f"base/{base}", forest.key(root)))
            layout.place_tree(root, 1, root_row, forest)
    _add_corpus_versions(forest, layout)
    columns = 1 + max((node.column for node in layout.nodes), default=-1)
    return LineageGraph(layout.nodes, layout.edges, columns, layout.rows)


def select_related(versions: Sequence[Version], run_uri: str) -> list[Version]:
    """Selects the versions of a run, those that they go on from, and those that came of them."""
    parents = find_parents(versions)
    own = {i for i, version in enumerate(versions) if version.run == run_uri}
    above, below = set(own), set(own)
    for i in reversed(range(len(versions))):
        parent = parents[i]
        if i in above and parent is not None:
            above.add(parent)
    for i, parent in enumerate(parents):
        if parent in below:
            below.add(i)
    return [version for i, version in enumerate(versions) if i in above | below]


def _add_corpus_versions(forest: _Forest, layout: _Layout) -> None:
    """Adds each corpus version above the first version that took it up."""
    columns = {node.key: node.column for node in layout.nodes}
    taken: set[int] = set()
    added: dict[tuple[str, str], str] = {}
    for i in sorted(range(len(forest.versions)), key=lambda i: columns[forest.key(i)]):
        corpus, parent = _corpus_of(forest.versions[i]), forest.parents[i]
        if corpus is None or (parent is not None and corpus == _corpus_of(forest.versions[parent])):
            continue
        if corpus not in added:
            column = columns[forest.key(i)]
            while column in taken:
                column += 1
            taken.add(column)
            added[corpus] = f"corpus/{'/'.join(corpus)}"
            title = f"Corpus version {corpus[1]}"
            layout.nodes.append(Node(added[corpus], "corpus", title, "", column, CORPUS_ROW))
        layout.edges.append(Edge(added[corpus], forest.key(i), is_corpus=True))


def _corpus_of(version: Version) -> tuple[str, str] | None:
    """Returns fingerprint and version of the corpus; None where it is not recorded."""
    number = version.tags.get("corpus_version", "")
    return (version.tags.get("corpus_fingerprint", ""), number) if number else None


def _base_of(version: Version) -> str:
    return version.tags.get("base", "")
