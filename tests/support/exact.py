"""Every pair of two lists of comments, compared exactly: no hash, no estimate, no candidates."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from content_arena.core.text import canonical


def triples(text: str) -> set[str]:
    "Letter triples of the canonical view, its start and end marked; on their own feet, not the package's."
    marked = f"\x02{canonical(text)}\x03"
    return {marked[i : i + 3] for i in range(max(1, len(marked) - 2))}


def _table(texts: Sequence[str], column: dict[str, int]) -> csr_array:
    rows = [[column.setdefault(t, len(column)) for t in triples(text)] for text in texts]
    ends = np.cumsum([0, *map(len, rows)])
    return csr_array(
        (np.ones(ends[-1]), np.concatenate([*rows, []]).astype(int), ends), shape=(len(rows), 2**24)
    )


def alike(some: Sequence[str], others: Sequence[str], threshold: float) -> pd.DataFrame:
    "Pairs (some, others: positions) whose exact Jaccard similarity reaches `threshold`, closest first."
    column: dict[str, int] = {}
    a, b = _table(some, column), _table(others, column)
    size_a, size_b = np.diff(a.indptr), np.diff(b.indptr)
    tables = [pd.DataFrame({"some": [], "others": [], "jaccard": []})]
    for start in range(0, len(some), 200):
        shared = (a[start : start + 200] @ b.T).tocoo()
        row = start + shared.row
        value = shared.data / (size_a[row] + size_b[shared.col] - shared.data)
        near = value >= threshold
        tables.append(
            pd.DataFrame({"some": row[near], "others": shared.col[near], "jaccard": value[near]})
        )
    return pd.concat(tables).sort_values("jaccard", ascending=False, ignore_index=True)


def leaks(
    frames: dict[str, pd.DataFrame], threshold: float, sample: int = 400
) -> list[tuple[str, str, float]]:
    """(text, its near copy, similarity) of a `sample` of test and of valid rows that another split has too.

    `frames`: train, valid and test, with a column text."""
    pairs = []
    for tested, trained in (("test", "train"), ("test", "valid"), ("valid", "train")):
        some = frames[tested].text.sample(min(sample, len(frames[tested])), random_state=0).tolist()
        others = frames[trained].text.tolist()
        pairs += [
            (some[int(p.some)], others[int(p.others)], p.jaccard)
            for p in alike(some, others, threshold).itertuples()
        ]
    return pairs
