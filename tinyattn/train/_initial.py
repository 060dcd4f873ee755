"""The params that a run starts from: the model's own, or those of another run."""

import logging
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from tinyattn import model, records, registry, weights
from tinyattn.tasks import Task

# What may be new beside a body of other weights, and is left behind where a model has no such place.
ENDS = r"(head|pooler)/.*|embedding/(mask|cls)"


def initial(encoder: model.Transformer, task: Task, path: str) -> Callable:
    """rng -> params: the model's own, or with all of its body from the run or file at `path`.

    The body is all but a head, a pooler, and the embeddings of the class token and of what is hidden:
    every leaf of it must be there, in its shape, and no other. Of these ends those are taken that fit, and
    the others are the model's own.

    Raises:
      ValueError: The file is refused, its token ids mean something else, or a path, shape or dtype of its
        body differs from the model's.
    """
    few = jax.tree.map(lambda x: x[:1], task.train)
    own = jax.jit(lambda rng: encoder.init(rng, **few.given)["params"])
    if not path:
        return own
    try:
        file = records.kept(path, records.WEIGHTS)
    except ValueError as error:
        raise ValueError(f"train.pretrained={path!r}: {error}") from error
    contents = weights.read(file)
    if contents.meta.get("vocabulary", task.vocabulary) != task.vocabulary:
        raise ValueError(
            f"train.pretrained={path!r} has another tokeniser than the task, so that its token ids mean"
            f" something else: set task.vocabulary={path!r} too"
        )
    found = weights.leaves(weights.fold(contents.theta))
    # Folded, both have arrays alone, whatever training does with them.
    shapes = jax.eval_shape(lambda rng: weights.fold(own(rng)), jax.random.PRNGKey(0))
    wanted = weights.leaves(shapes)
    taken = _taken(path, found, wanted)
    new, left = ([x for x in both if x not in taken] for both in (wanted, found))
    logging.getLogger(__name__).warning(
        "train.pretrained=%r: %d leaves taken; new: %s; left: %s",
        path, len(taken), ", ".join(new) or "none", ", ".join(left) or "none",
    )  # fmt: skip

    def init(rng):
        names = iter(wanted)

        def leaf(x):
            # Copies, for a state is donated to its first step.
            return jnp.array(found[name]) if (name := next(names)) in taken else x

        return jax.tree.map(leaf, own(rng))

    return init


def _taken(path: str, found: dict, wanted: dict) -> set[str]:
    """The paths whose leaves are the file's."""
    for missing, other, whose in ((wanted, found, "the file"), (found, wanted, "the model")):
        lacking = [name for name in missing if name not in other and not re.fullmatch(ENDS, name)]
        if lacking:
            raise ValueError(
                f"train.pretrained={path!r}: {whose} has no {lacking[0]!r} and {len(lacking) - 1}"
                f" others; give a run of the same body, {registry.nearest(lacking[0], other)}"
            )
    taken = set()
    for name in filter(found.__contains__, wanted):
        have, want = found[name], wanted[name]
        if (have.shape, have.dtype) == (want.shape, want.dtype):
            taken.add(name)
        elif not re.fullmatch(ENDS, name):
            raise ValueError(
                f"train.pretrained={path!r}: {name} is {have.dtype}{list(have.shape)}, and the"
                f" model's is {want.dtype}{list(want.shape)}: give a run of the same body"
            )
    return taken
