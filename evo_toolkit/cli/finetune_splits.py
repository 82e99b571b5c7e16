"""How the commands of `evo-toolkit finetune` judge what they fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click

# As in evo_toolkit.finetuning.splits; a test keeps them equal.
SPLIT_BY = ("auto", "group", "cluster", "site", "block", "none")


@dataclass(frozen=True, kw_only=True)
class Split:
    """What `split_options` add, as given."""

    folds: int
    inner_folds: int
    by: str
    k: int
    block: int
    seed: int
    resamples: int
    trained_on: tuple[str, ...]


def split_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about folds, handed over as one argument `split`."""

    @click.option(
        "--folds",
        type=click.IntRange(min=2),
        default=5,
        show_default=True,
        metavar="N",
        help="Of the cross-validation.",
    )
    @click.option(
        "--inner-folds",
        type=click.IntRange(min=2),
        default=3,
        show_default=True,
        metavar="N",
        help="Within each training part, to choose settings.",
    )
    @click.option(
        "--split-by",
        type=click.Choice(SPLIT_BY),
        default="auto",
        show_default=True,
        help="What stays together in folds. group: --group (of places without one, the contig); cluster: sequences that share a k-mer, joined with the groups; site: variants of the same bases; block: stretches of the genome; auto: for variants the groups if given, else site; for all others cluster.",
    )
    @click.option(
        "--cluster-k",
        "k",
        type=click.IntRange(8, 64),
        default=31,
        show_default=True,
        metavar="K",
        help="Length of the k-mers, either strand.",
    )
    @click.option(
        "--block",
        type=click.IntRange(min=1),
        default=1000,
        show_default=True,
        metavar="N",
        help="Length of the stretches of --split-by block, in bases.",
    )
    @click.option(
        "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all draws."
    )
    @click.option(
        "--resamples",
        type=click.IntRange(min=0),
        default=1000,
        show_default=True,
        metavar="N",
        help="Of the bootstrap over groups.",
    )
    @click.option(
        "--trained-on",
        multiple=True,
        metavar="PATH",
        help="Genomes (files or folders) that the model was trained on: how much of what is judged stands there is then said; repeatable.",
    )
    @wraps(command)
    def wrapped(
        *args: Any,
        folds: int,
        inner_folds: int,
        split_by: str,
        k: int,
        block: int,
        seed: int,
        resamples: int,
        trained_on: tuple[str, ...],
        **others: Any,
    ) -> Any:
        split = Split(
            folds=folds, inner_folds=inner_folds, by=split_by, k=k, block=block, seed=seed,
            resamples=resamples, trained_on=trained_on,
        )  # fmt: skip
        return command(*args, split=split, **others)

    return wrapped
