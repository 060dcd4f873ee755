"""The Linen module around a variant's `attend`, and the shapes of what it hands to it."""

import inspect
import sys
from collections.abc import Mapping
from types import ModuleType

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinyattn.attention._heads import Heads, Rotate, check, merge, project
from tinyattn.biases import Bias
from tinyattn.masks import Mask


class Shell(nn.Module):
    """Project to heads, mix them by the variant's `attend`, project back: [B, T, D] to [B, T, D].

    A variant's `Attention` is a subclass of this, in the same module as its `attend` and `SUPPORTS`,
    which is where they are looked up; so are a `project` and `extras` of its own.
    """

    config: Heads
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    out_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self,
        inputs,
        memory=None,
        *,
        mask: Mask = Mask(),
        rotate: Rotate | None = None,
        bias: Bias | None = None,
        shared: Mapping[str, jax.Array] | None = None,
        held: Mapping[str, jax.Array] | None = None,
        return_heads: bool = False,
        state=None,
        active=None,
    ):
        """Returns [B, T, D], and all that `attend` took by name if `return_heads`.

        With a `state` it returns [B, 1, D], what the variant's `step` took, and the new state.

        Args:
          inputs: [B, T, D].
          memory: [B, S, D] that keys and values come from; None is the inputs.
          mask: Who may see whom.
          rotate: Turns query and key heads, as rotary positions do.
          bias: Of the scores.
          shared: Heads of an earlier layer by name, which are not projected again.
          held: Arrays of `of_memory` by name, of a memory seen before, whatever `memory` is then.
          return_heads: For layers to come, which share them.
          state: Of the tokens before these, in decoding, where T is 1 and a mask has no meaning.
          active: bool [B], examples whose state takes this token.
        """
        variant = sys.modules[type(self).__module__]
        asked = {"cross": memory is not None, "bias": bias is not None}
        check(variant.__name__, variant.SUPPORTS, mask, **asked)
        options = {"rotate": rotate, "kernel_init": self.kernel_init}
        if shared:
            options["shared"] = shared
        given = _inputs(variant, self.config, inputs, memory, **options) | dict(held or {})
        if bias is not None:
            given["bias"] = bias
        if state is not None:
            out, state = variant.step(self.config, state, **given, active=active)
            return merge(out, inputs.shape[-1], kernel_init=self.out_init), given, state
        out = variant.attend(self.config, **given, mask=mask)
        out = merge(out, inputs.shape[-1], kernel_init=self.out_init)
        return (out, given) if return_heads else out


def _inputs(variant, config, inputs, memory, **options) -> dict[str, jax.Array]:
    """All arrays that a variant's `attend` takes by name; to be called within a compact module."""
    heads = getattr(variant, "project", project)(config, inputs, memory, **options)
    given = dict(zip(("query", "key", "value"), heads, strict=True))
    if hasattr(variant, "extras"):
        given |= variant.extras(config, inputs, memory, kernel_init=options["kernel_init"])
    return given


class _Inputs(nn.Module):
    """What `attend` gets, without `attend`."""

    variant: ModuleType
    config: Heads

    @nn.compact
    def __call__(self, inputs, memory):
        init = nn.initializers.lecun_normal()
        return _inputs(self.variant, self.config, inputs, memory, rotate=None, kernel_init=init)


def shapes(
    variant: ModuleType, config: Heads, *, D: int, B: int, T: int, S: int | None = None
) -> dict[str, tuple[int, ...]]:
    """The shape of every array that a variant's `attend` takes, by name.

    Args:
      variant: Its module.
      config: Its fields.
      D: Width of the model.
      B: Examples.
      T: Queries.
      S: Keys of another sequence; None is the queries' own.
    """
    tokens, memory = (
        None if n is None else jax.ShapeDtypeStruct((B, n, D), jnp.float32) for n in (T, S)
    )
    module = _Inputs(variant, config)
    made, _ = jax.eval_shape(module.init_with_output, jax.random.PRNGKey(0), tokens, memory)
    return {name: x.shape for name, x in made.items()}


def of_memory(variant: ModuleType, config: Heads, *, D: int) -> frozenset[str]:
    """Names of the arrays that `attend` takes of a memory: all that change shape with its length."""
    two, three = (shapes(variant, config, D=D, B=1, T=1, S=S) for S in (2, 3))
    return frozenset(name for name in two if two[name] != three[name])


def shares(variant: ModuleType, config: Heads) -> bool:
    """Whether layers of a variant can take heads from one another: those of `project`, and no others."""
    own = getattr(variant, "project", project)
    return own is project or "shared" in inspect.signature(own).parameters
