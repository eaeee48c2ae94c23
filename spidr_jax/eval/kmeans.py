"""k-means: units of any features, by scikit-learn with the field's settings.

N frames, D width, K clusters.
"""

import numpy as np
from numpy.typing import NDArray


def fit(frames: NDArray[np.floating], clusters: int, seed: int = 0) -> NDArray[np.float32]:
    """Fit centres [K, D] of frames [N, D] by mini-batches; a memory map is never read as a whole.

    Source: the settings of HuBERT (Hsu et al. 2021) in fairseq's code.

    Raises:
        ValueError: there are fewer frames than clusters, or K is not positive.
    """
    from sklearn.cluster import MiniBatchKMeans

    if not 1 <= clusters <= len(frames):
        raise ValueError(
            f"kmeans = {clusters}: allowed is 1 to {len(frames)}, the number of frames"
        )
    fitted = MiniBatchKMeans(
        clusters,
        batch_size=10_000,
        n_init=20,
        max_iter=100,
        max_no_improvement=100,
        reassignment_ratio=0.0,
        compute_labels=False,
        random_state=seed,
    ).fit(frames)
    return np.asarray(fitted.cluster_centers_, np.float32)


def assign(frames: NDArray[np.floating], centres: NDArray[np.float32]) -> NDArray[np.int32]:
    """The nearest centre [N] of each frame [N, D], of the centres [K, D] that `fit` gives."""
    from sklearn.metrics import pairwise_distances_argmin

    return np.asarray(pairwise_distances_argmin(frames, centres), np.int32)
