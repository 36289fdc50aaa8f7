"""Callbacks that choose, evaluate, report, each a Hydra config away."""
