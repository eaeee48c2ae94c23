"""Units of features by k-means."""

from spidr_jax.eval import kmeans
from spidr_jax.inference.outputs import Outputs


def with_kmeans(outputs: Outputs, fitted_on: Outputs, clusters: int, seed: int) -> Outputs:
    """Add k-means units of all features, with centres fitted on those of `fitted_on`.

    Raises:
        ValueError: see `kmeans.fit`.
    """
    arrays = dict(outputs.arrays)
    for (kind, layer), array in outputs.arrays.items():
        if kind == "features":
            centres = kmeans.fit(fitted_on.arrays[kind, layer], clusters, seed)
            arrays["kmeans", layer] = kmeans.assign(array, centres)
    return outputs._replace(arrays=arrays)
