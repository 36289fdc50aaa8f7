"""Callbacks that choose, evaluate and report, each a Hydra config away."""
