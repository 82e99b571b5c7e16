"""Generation: one base at a time through the model's states."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from evo_data.tokenizer import ByteTokenizer
from evo_toolkit.errors import EvoError
from evo_toolkit.inference.batching import CHUNK

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2


@torch.inference_mode()
def generate(
    model: StripedHyena2,
    prompt: str | bytes,
    *,
    max_new_tokens: int = 500,
    temperature: float = 1.0,
    seed: int | None = None,
) -> str:
    """Continue a prompt.

    The prompt goes through the model in chunks, then every new base is one step from the state, so
    the result equals recomputing the whole sequence for each base.

    Args:
        prompt: At least one base; the model has no start token.
        max_new_tokens: How many bases to add at most; fewer when the model ends the sequence
            (token 0).
        temperature: Logits are divided by it before sampling; 0 takes the likeliest token.
        seed: Of the sampling; None draws one.

    Returns:
        The new bases, without the prompt.

    Raises:
        EvoError: if the model gives no finite number.
        ValueError: for an empty prompt, a negative temperature, or fewer than one new token.
    """
    if not prompt:
        raise ValueError("the prompt is empty; give at least one base to continue from")
    if not (temperature >= 0 and np.isfinite(temperature)):
        raise ValueError(
            f"temperature is {temperature}; use 0 (likeliest base) or a positive number"
        )
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; use at least 1")
    tokenizer = ByteTokenizer()
    generator = torch.Generator(device=model.device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    ids = torch.from_numpy(tokenizer.encode(prompt).astype(np.int64))[None].to(model.device)
    state = None
    for start in range(0, ids.shape[1], CHUNK):
        hidden, state = model.hidden(ids[:, start : start + CHUNK], state, return_state=True)
    logits = model.head(hidden[:, -1:])
    produced: list[int] = []
    while len(produced) < max_new_tokens:
        if not bool(logits.isfinite().all()):
            raise EvoError(f"{model.config.name} gave no finite number; its weights may be damaged")
        if temperature == 0:
            token = logits[:, -1].argmax(-1, keepdim=True)
        else:
            probabilities = torch.softmax(logits[:, -1].float() / temperature, dim=-1)
            token = torch.multinomial(probabilities, 1, generator=generator)
        if int(token) == tokenizer.eod_id:
            break
        produced.append(int(token))
        if len(produced) < max_new_tokens:
            logits, state = model(token, state, return_state=True)
    return tokenizer.decode(produced)
