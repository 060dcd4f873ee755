"""The step suite: whole training steps of ours and of the same model in eager PyTorch, in turns."""

import os

import jax
import jax.numpy as jnp
import numpy as np
from tabulate import tabulate

from experiments.timing import Sample, rounds
from tinyattn import attention, cost, model, optim, registry, tasks, train

STEPS = 10  # a dispatch of ours, and as many steps of the peer, are one sample
SECONDS = 25.0  # of sampling for each shape

# B, T, D, L, and in how many parts a CPU takes its batch; heads are 4, FFN width is 4 D.
SHAPES = (
    (64, 64, 64, 2, 4),
    (32, 128, 128, 4, 4),
    (16, 512, 64, 2, 4),
    (128, 16, 32, 2, 1),
    (64, 16, 48, 2, 1),
)


def shapes() -> tuple[tuple[int, ...], ...]:
    """The shapes; parts fit a CPU's cache, and a GPU takes its batch whole."""
    return SHAPES if _on_cpu() else tuple((*shape[:-1], 1) for shape in SHAPES)


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def config(B: int, T: int, D: int, L: int, parts: int) -> dict:
    """The config of a run at this shape."""
    return {
        "task": tasks.spec("experiments.noise", length=T, examples=2 * B),
        "model": model.spec(
            patch=1,
            max_length=T,
            width=D,
            num_layers=L,
            ffn_width=4 * D,
            attention=attention.spec("dense", num_heads=4),
        ),
        "weights": (),
        "optim": registry.defaults(optim.Config)
        | {"learning_rate": 1e-3, "weight_decay": 0.01, "clip_norm": 1.0},
        "train": registry.defaults(train.Config)
        | {
            "steps": 1_000_000,
            "batch_size": B,
            "micro_batches": parts,
            "data_devices": jax.device_count(),
        },
    }


def measure(shape: tuple[int, ...]) -> dict:
    """Times training steps at one shape; both first prove that they train the same function."""
    import torch

    from experiments import peer

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = peer.device()
    # As JAX's own default on a GPU: TF32.
    torch.set_float32_matmul_precision("highest" if _on_cpu() else "high")
    B, T, D, L, _ = shape
    program = train.make(config(*shape))
    state = program.init(0)
    data = jax.tree.map(jnp.asarray, program.task.train)
    twin = peer.Encoder(program.model.config, T, program.task.train.inputs.shape[-1])
    peer.load_params(twin, jax.device_get(program.scheme.build(state.theta)))
    twin.to(device)
    settings = registry.construct(optim.Config, config(*shape)["optim"], "optim")
    peer_step = peer.trainer(twin, settings)
    flops = cost.count(program.step, state, jax.tree.map(lambda x: x[:B], data)).products
    rows = train.batches(0, 2 * B, B, 0, STEPS)
    inputs = torch.from_numpy(program.task.train.inputs[:, :, 0]).to(device)
    labels = torch.from_numpy(program.task.train.labels.astype(np.int64)).to(device)
    indices, chosen = jnp.asarray(rows), torch.from_numpy(rows.astype(np.int64)).to(device)

    def ours():
        nonlocal state
        state, sums = program.run(state, data, indices)
        return np.asarray(sums.loss) / B

    def theirs():
        return torch.stack([peer_step(inputs[i], labels[i]) for i in chosen]).cpu().numpy()

    # TF32 keeps 11 bits of a factor.
    rtol = 1e-3 if _on_cpu() else 1e-2
    np.testing.assert_allclose(ours(), theirs(), rtol=rtol, err_msg=f"different models at {shape}")
    ours()  # compiled again: a state comes back placed on all devices, as it was not at first
    mine, peers = rounds([ours, theirs], SECONDS) / STEPS
    ratio = Sample.of(peers / mine)
    return {
        "suite": "step",
        "shape": f"B{B} T{T} D{D} L{L}",
        "ratio": ratio.median,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "rounds": len(mine),
        "seconds": float(np.median(mine)),
        "peer_seconds": float(np.median(peers)),
        "peer": f"torch {torch.__version__} eager",
        "flops": flops,
        "flops_per_second": flops / float(np.median(mine)),
        "micro_batches": shape[-1],
        "data_devices": jax.device_count(),
    }


def table(results: list[dict]) -> str:
    """The results as Markdown."""
    heads = ["shape", "peer / ours", "quartiles", "ours, ms", "peer, ms", "GFLOP/s", "of products"]
    rows = [
        [
            r["shape"],
            f"{r['ratio']:.2f}x",
            f"{r['ratio_low']:.2f}-{r['ratio_high']:.2f}",
            f"{1e3 * r['seconds']:.2f}",
            f"{1e3 * r['peer_seconds']:.2f}",
            f"{r['flops_per_second'] / 1e9:.0f}",
            f"{r['flops_per_second'] / r['product_rate']:.0%}",
        ]
        for r in results
    ]
    mean = np.exp(np.mean(np.log([r["ratio"] for r in results])))
    notes = (
        f"Geometric mean {mean:.2f}x, least {min(r['ratio'] for r in results):.2f}x; more than 1 is"
        f" faster than {results[0]['peer']}. Median over rounds in which both take turns;"
        f" {STEPS} steps a round. GFLOP/s: products of a training step over its median time;"
        f" 'of products': over the best rate of a 2048x2048x2048 product in the same run,"
        f" {results[0]['product_rate'] / 1e9:.0f} GFLOP/s. {results[0]['device']}."
    )
    align = ["left"] + ["right"] * (len(heads) - 1)
    return (
        tabulate(rows, heads, tablefmt="pipe", colalign=align, disable_numparse=True)
        + f"\n\n{notes}\n"
    )
