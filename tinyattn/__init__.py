"""Compact attention in JAX: how tokens mix, how weights are stored, and what both cost."""
