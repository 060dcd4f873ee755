"""The params that a run starts from: the model's own, or those of a file."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tinyattn import model, registry, weights
from tinyattn.tasks import Task


def initial(encoder: model.Transformer, task: Task, path: str) -> Callable:
    """rng -> params: the model's own, or the folded params of the file at `path`, whatever the rng.

    Raises:
      ValueError: The file is refused, or a path, shape or dtype in it differs from the model's.
    """
    few = jax.tree.map(lambda x: x[:1], task.train)
    if not path:
        return jax.jit(lambda rng: encoder.init(rng, **few.given)["params"])
    params = weights.fold(weights.load(path))
    rng = jax.random.PRNGKey(0)
    shapes = jax.eval_shape(lambda: encoder.init(rng, **few.given)["params"])
    _check(path, weights.leaves(params), weights.leaves(jax.eval_shape(weights.fold, shapes)))
    # A folded file has arrays alone, whatever training does with them.
    params = jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(params))
    # Copies, for a state is donated to its first step.
    return lambda rng: jax.tree.map(jnp.array, params)


def _check(path: str, found: dict, wanted: dict) -> None:
    for missing, other, whose in ((wanted, found, "the file"), (found, wanted, "the model")):
        if lacking := [name for name in missing if name not in other]:
            raise ValueError(
                f"train.pretrained={path!r}: {whose} has no {lacking[0]!r} and {len(lacking) - 1}"
                f" others; give a file of the same model, {registry.nearest(lacking[0], other)}"
            )
    for name, want in wanted.items():
        have = found[name]
        if (have.shape, have.dtype) != (want.shape, want.dtype):
            raise ValueError(
                f"train.pretrained={path!r}: {name} is {have.dtype}{list(have.shape)}, and the"
                f" model's is {want.dtype}{list(want.shape)}: give a file of the same model"
            )
