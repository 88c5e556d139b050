"""Layers, and rivals of continual backprop that are layers."""

from cbp_jax.layers.dropout import dropout as dropout
