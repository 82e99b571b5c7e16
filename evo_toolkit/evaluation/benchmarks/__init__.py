"""Loaders of benchmarks: files in the format in which each is published, to labelled sequences.

`evo_toolkit.evaluation.registry` names them and says where their files come from.
"""
