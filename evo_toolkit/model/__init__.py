"""StripedHyena 2 as plain `nn.Module`s. Empty on purpose: `config` and `registry` must import without torch."""
