"""Writes ids with a decoder or an encoder-decoder: greedily, by sampling, or by beam search.

    write = generate.beam(model, steps=30, eos=2, beams=4, alpha=0.6)
    found = write(params, prompt)                            # a decoder goes on with its prompt
    found = write(params, prompt, inputs=ids, key_valid=valid)  # an encoder-decoder, whose prompt is BOS

Each of the three makes a function that is compiled once for all calls of the same shapes. It decodes token
by token out of every variant's own state; what an encoder-decoder attends to is projected once.
"""

from tinyattn.generate._beam import beam, penalty
from tinyattn.generate._loop import Written
from tinyattn.generate._sample import filtered, greedy, sample

__all__ = ["Written", "beam", "filtered", "greedy", "penalty", "sample"]
