"""How good a model is: bits per base beside baselines, and tasks whose confounders are held equal.

Nothing here imports pysam, Biopython or Pyrodigal at module level: genomes are read and genes are
called where those are installed (`tasks`), and the rest runs from a prepared file anywhere.
"""
