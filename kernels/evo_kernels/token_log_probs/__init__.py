"""Log-probabilities of given tokens from the residual stream: final norm, head and log-softmax."""

from evo_kernels.token_log_probs.op import token_log_probs, why_unfused

__all__ = ["token_log_probs", "why_unfused"]
