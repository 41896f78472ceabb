"""Which pictures show the same person: by folder, by a list, or by clustering what a recogniser sees.

Clustering is average linkage on cosine similarity: two groups become one while the mean similarity of all pairs
between them is at least the threshold. Average linkage only ever joins faces that a chain of pairs above the threshold
connects, so it is done within each such chain: the whole N x N table is never held, yet the result is exact.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from feedface.common.errors import UserError
from feedface.preparation.tables import PEOPLE, Table

KINDS = ("none", "folder", "list", "cluster")
# ArcFace embeddings of photos, buffalo_l's, are usually told apart at a cosine of 0.3 to 0.45 (literature, not measured
# here). mini was measured on unseen people of the portraits, 5 pictures each, by pairs: of 2 x 60 people precision 0.86
# and 0.77, recall 0.53 and 0.60, purity of the groups 0.95 and 0.93 (F1 is highest at 0.65, with precision 0.73); of
# 300 people precision 0.39, recall 0.44, purity 0.78: it tells few people apart, and no threshold more.
THRESHOLDS = {"mini": 0.7}
PHOTO_THRESHOLD = 0.4
ROWS = 512  # of the similarity table that are looked at together
MAX_CHAIN = 15_000  # faces that are compared all with all: 1.8 GB


def group(
    pictures: Sequence[tuple[str, np.ndarray | Sequence[float] | None]],
    by: str,
    threshold: float | None = None,
    list_file: str | Path | None = None,
    detector: str = "",
    all_pictures: Sequence[str] | None = None,
) -> dict[str, str]:
    """The person that each picture shows; pictures about which that is not known are left out.

    Args:
        pictures: path below the data folder, "/" between folders, and the face's embedding (any length) or None.
        by: "none"; "folder": all pictures of a folder show one person, those in the data folder itself are left out;
            "list": `list_file` says it; "cluster": faces are alike. People found so are called person_0000, … by
            the order in which they come in `pictures`; one with a single picture is one, too.
        threshold: for "cluster": cosine similarity, -1 to 1; None takes the detector's, see `default_threshold`.
        list_file: for "list", see `tables`.
        all_pictures: for "list": the names of all pictures, by which it is told whether one is clear; by default those
            of `pictures`.

    Raises:
        UserError: a list that cannot be used, no embeddings, or a threshold that chains nearly all faces together.
    """
    if by == "none":
        return {}
    if by == "folder":
        return {rel: rel.rpartition("/")[0] for rel, _ in pictures if "/" in rel}
    if by == "list":
        if list_file is None:
            raise UserError(
                "--identity list: needs --identity_list, a .json, .jsonl, .csv or .tsv file of who is shown"
            )
        table = Table(Path(list_file), PEOPLE, [rel for rel, _ in pictures] if all_pictures is None else all_pictures)
        return {rel: name for rel, _ in pictures if (name := table.find(rel)) is not None}
    if by == "cluster":
        return _by_face(pictures, default_threshold(detector) if threshold is None else threshold)
    raise UserError(f"--identity {by!r}: must be one of {', '.join(KINDS)}")


def default_threshold(detector: str) -> float:
    """Cosine similarity above which two groups are one person, for the recogniser of a pack."""
    return THRESHOLDS.get(detector, PHOTO_THRESHOLD)


def _by_face(pictures, threshold: float) -> dict[str, str]:
    known = [(rel, embedding) for rel, embedding in pictures if embedding is not None]
    if pictures and not known:
        raise UserError(
            "--identity cluster: there are no embeddings, the detector has no recogniser; "
            "use --detector buffalo_l or mini, or --identity folder or list"
        )
    if not known:
        return {}
    labels = cluster(np.array([embedding for _, embedding in known], np.float32), threshold)
    digits = max(4, len(str(labels.max())))
    return {rel: f"person_{label:0{digits}d}" for (rel, _), label in zip(known, labels, strict=True)}


def cluster(embeddings: np.ndarray, threshold: float) -> np.ndarray:
    """Embeddings [N, E] of any length -> person of each, int64 [N], numbered from 0 by first appearance.

    `UserError` if more than `MAX_CHAIN` faces hang together.
    """
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    units = np.asarray(embeddings, np.float32) / np.maximum(norms, 1e-12)
    chains = _chains(units, threshold)
    labels = np.empty(len(units), np.int64)
    count = 0
    for members in _members(chains):
        parts = _average_linkage(units[members], threshold)
        labels[members] = parts + count
        count += parts.max() + 1
    return _by_first_appearance(labels)


def _chains(units: np.ndarray, threshold: float) -> np.ndarray:
    """Connected components [N] of the pairs that are at least that similar."""
    # Half a second to import, and only clustering needs it.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    total = len(units)
    chains = np.arange(total)
    # A hair below the threshold: rounding must not part what average linkage, in float64, would join.
    lowest = threshold - 1e-5
    for start in range(0, total, ROWS):
        rows, columns = np.nonzero(units[start : start + ROWS] @ units[start:].T >= lowest)
        links = np.unique(np.stack([chains[rows + start], chains[columns + start]]), axis=1)
        graph = coo_array((np.ones(links.shape[1], bool), links), (total, total))
        chains = connected_components(graph, directed=False)[1][chains]
    return chains


def _members(labels: np.ndarray) -> list[np.ndarray]:
    """The rows of each label."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _average_linkage(units: np.ndarray, threshold: float) -> np.ndarray:
    """Labels from 0 of [n, E] unit vectors."""
    if len(units) == 1:
        return np.zeros(1, np.int64)
    if len(units) > MAX_CHAIN:
        raise UserError(
            f"--identity_threshold {threshold:g}: chains {len(units)} faces together, and {MAX_CHAIN} can be compared "
            "with each other; use a higher one"
        )
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    units = units.astype(np.float64)
    distances = np.maximum(1 - units @ units.T, 0)
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(distances, checks=False), "average")
    return fcluster(tree, 1 - threshold, "distance").astype(np.int64) - 1


def _by_first_appearance(labels: np.ndarray) -> np.ndarray:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]
