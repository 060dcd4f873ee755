"""What each JAX primitive costs when its equation alone decides it, as tables by primitive name.

A primitive is in exactly one table. One that is in none raises `Uncountable`, so that a new release
of JAX or a new kernel can make a count fail but not wrong. Names of several releases live side by
side.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.extend.core import JaxprEqn


class Flops(NamedTuple):
    """Work of a program, in FLOPs (`products`) and element operations (`elementwise`).

    Attributes:
      products: Floating or integer operations of matrix products and convolutions; one multiply-add
        is 2.
      elementwise: Element operations of everything else; None where no exact number exists.
    """

    products: int
    elementwise: int | None


class Uncountable(ValueError):
    """A program holds something whose cost cannot be stated exactly."""


def size(atom) -> int:
    """Number of elements of a jaxpr variable or literal."""
    return math.prod(atom.aval.shape)


def _multiply_add(atom) -> int:
    """FLOPs of one multiply-add; a complex one is four real ones."""
    return 8 if np.issubdtype(atom.aval.dtype, np.complexfloating) else 2


def _contraction(eqn: JaxprEqn, dimension_numbers, group_dims=()) -> Flops:
    lhs, rhs = eqn.invars[:2]
    (_, contracted), (_, batch) = dimension_numbers
    shared = {*contracted, *batch, *group_dims}
    columns = math.prod(n for axis, n in enumerate(rhs.aval.shape) if axis not in shared)
    return Flops(_multiply_add(lhs) * size(lhs) * columns, 0)


def _dot_general(eqn: JaxprEqn) -> Flops:
    """2 · |lhs| · free extent of rhs; an outer product is 2 an output element."""
    return _contraction(eqn, eqn.params["dimension_numbers"])


def _ragged_dot_general(eqn: JaxprEqn) -> Flops:
    """Each row, or contracted slice, meets the one group it belongs to, as in a grouped kernel.

    A backend without such a kernel masks a dense product over all groups instead (XLA on CPU does):
    `compiler_flops` shows it.
    """
    dims = eqn.params["ragged_dot_dimension_numbers"]
    return _contraction(eqn, dims.dot_dimension_numbers, dims.rhs_group_dimensions)


def _conv_general_dilated(eqn: JaxprEqn) -> Flops:
    """2 · output elements · kernel elements of one output channel.

    The kernel's input extent is already divided by `feature_group_count`, and the output's batch by
    `batch_group_count`. Positions that read padding or a dilation's zeros are counted as executed.
    """
    kernel = eqn.invars[1]
    out_channels = kernel.aval.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
    taps = size(kernel) // max(out_channels, 1)
    return Flops(_multiply_add(kernel) * size(eqn.outvars[0]) * taps, 0)


def _fft(eqn: JaxprEqn) -> Flops:
    """No product: what a transform of n numbers takes depends on the algorithm picked for n."""
    return Flops(0, None)


def _fused_attention(query_products: int, value_products: int) -> Callable[[JaxprEqn], Flops]:
    """Rule of cuDNN attention: dense products over all pairs, whatever its mask lets it skip."""

    def rule(eqn: JaxprEqn) -> Flops:
        query, key, value = eqn.invars[:3]
        query_width, value_width = query.aval.shape[-1], value.aval.shape[-1]
        key_axis = 2 if eqn.params["layout"] == 1 else 1  # AttentionLayout: BTNH is 0, BNTH is 1
        pairs = size(query) // query_width * key.aval.shape[key_axis]
        width = query_products * query_width + value_products * value_width
        return Flops(2 * pairs * width, None)

    return rule


RULES: dict[str, Callable[[JaxprEqn], Flops]] = {
    "dot_general": _dot_general,
    "ragged_dot_general": _ragged_dot_general,
    "conv_general_dilated": _conv_general_dilated,
    "fft": _fft,
    # Forward: QKᵀ, PV. Backward (flash): QKᵀ again, dQ, dK over the query width; dP, dV.
    "dot_product_attention_fwd_wrapper": _fused_attention(1, 1),
    "dot_product_attention_bwd_wrapper": _fused_attention(3, 2),
}
"""Rules by primitive name, asked before every table below; a fork may add or replace one.

A rule gets the equation (`eqn.invars[i].aval.shape`, `eqn.outvars`, `eqn.params`) and returns the
`Flops` of running it once: `RULES["my_dot"] = lambda eqn: Flops(2 * eqn.invars[0].aval.size, 0)`.
"""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ELEMENTWISE = _names("""
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp
    clz conj cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma
    igamma_grad_a igammac integer_pow is_finite le le_to lgamma log log1p log2 logistic lt lt_to max
    min mul mulhi ne neg nextafter not one_minus_square or polygamma population_count pow reciprocal
    reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square sub tan tanh xor zeta

    philox2x32 philox4x32 random_bits random_fold_in random_gamma random_seed random_split
    rng_bit_generator rng_uniform threefry2x32 threefry4x32
""")
"""One per element of every output. The second block is random: one per number or seed drawn."""

REDUCTIONS = _names("""
    approx_top_k argmax argmin cumlogsumexp cummax cummin cumprod cumsum pmax pmin psum
    psum_invariant reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_scatter reduce_sum
    reduce_xor sort top_k
""")
"""One per element of the first operand; what a sort carries along is free."""

WINDOWS = _names("""
    reduce_window_max reduce_window_min reduce_window_sum select_and_gather_add
    select_and_scatter_add
""")
"""One per element of each window, padding included."""

COMBINERS = _names("""
    reduce reduce_window scatter scatter-add scatter-max scatter-min scatter-mul scatter-sub
""")
"""The combining function's own count per element reduced, windowed or scattered."""

FREE = _names("""
    after_all bitcast_convert_type broadcast_in_dim broadcast_to complex concatenate
    convert_element_type copy copy_p create_token dce_sink dynamic_slice dynamic_update_slice empty
    empty2 from_edtype gather imag iota iota_2x32_shape name optimization_barrier pad
    platform_index real reshape rev slice split squeeze stack stop_gradient tie tile to_edtype
    transpose unstack xla_metadata_value zeros_like

    debug_callback debug_print random_clone random_unwrap random_wrap

    all_gather all_gather_invariant all_to_all axis_index device_put layout_constraint pbroadcast
    ppermute pvary ragged_all_to_all reduced_vary_cast_p reshard shard_alike sharding_constraint
    vary_unreduced_cast_p with_memory_space_constraint

    empty_ref free_ref freeze get masked_load masked_swap max_contiguous multiple_of new_ref
    num_programs program_id swap
""")
"""Movement, layout, change of dtype, bookkeeping, communication, reads and writes of references."""

CALLS = _names("""
    call checkpoint closed_call composite core_call custom_jvp_call custom_jvp_call_jaxpr eval_jaxpr
    custom_partitioning custom_vjp_call custom_vjp_call_jaxpr custom_vmap_call jit linear_call pjit
    remat remat2 run_scoped run_state shard_map xla_metadata_call
""")
"""Run one inner jaxpr: the primal of a custom rule, the body of a checkpoint or a shard."""

BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call", "callee")
"""Parameters under which a call keeps that jaxpr."""
