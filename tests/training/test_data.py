"""The data module: what it reads, and that a run goes on exactly where it was."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from evo_data.batches import step_samples
from evo_data.errors import EvoDataError
from evo_toolkit.errors import UsageError
from evo_toolkit.training.data import GenomeDataModule
from evo_toolkit.training.loading import EvaluationBatches, ResumableBatches, WindowDataset


def write_fasta(path: Path, *sequences: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f">{path.stem}_{at}\n{seq}\n" for at, seq in enumerate(sequences))
    path.write_text(text)
    return path


def random_text(seed: int, length: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("EVO_TOOLKIT_CACHE", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def genomes(tmp_path: Path) -> Path:
    folder = tmp_path / "genomes"
    write_fasta(folder / "one.fa", random_text(1, 700), random_text(2, 45))
    write_fasta(folder / "two.fa", random_text(3, 333), "ACG")
    return folder


# ---- dealing samples to ranks


def test_any_sequence_of_ranks_and_rows_reads_every_sample_once_in_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        num_windows = int(rng.integers(1, 40))
        consumed = 0
        read: list[int] = []
        for _ in range(6):
            num_ranks, batch_size = int(rng.integers(1, 5)), int(rng.integers(1, 5))
            steps = int(rng.integers(0, 9))
            loaders = [
                ResumableBatches(
                    num_windows,
                    batch_size=batch_size,
                    rank=rank,
                    num_ranks=num_ranks,
                    consumed=lambda: consumed,  # noqa: B023
                )
                for rank in range(num_ranks)
            ]
            iterators = [iter(loader) for loader in loaders]
            for _ in range(steps):
                try:
                    batches = [next(iterator) for iterator in iterators]
                except StopIteration:  # an epoch ends for all ranks together
                    assert all(next(iterator, None) is None for iterator in iterators)
                    iterators = [iter(loader) for loader in loaders]
                    batches = [next(iterator) for iterator in iterators]
                rows = [batch[row] for row in range(batch_size) for batch in batches]
                read += rows
                consumed += len(rows)
        assert read == list(range(consumed))


def test_an_epoch_has_its_length_wherever_it_begins() -> None:
    batches = ResumableBatches(10, batch_size=2, rank=0, num_ranks=2, consumed=lambda: 8)
    assert len(batches) == 3  # 10 windows, 4 a step
    assert list(batches) == [[8, 10]]
    steps = ResumableBatches(
        10, batch_size=2, rank=0, num_ranks=1, consumed=lambda: 0, accumulate=3
    )
    assert len(list(steps)) == len(steps) == 6
    whole = ResumableBatches(10, batch_size=2, rank=1, num_ranks=2, consumed=lambda: 12)
    assert list(whole) == [[13, 15], [17, 19], [21, 23]]


def test_evaluation_reads_every_window_once_in_full_batches() -> None:
    for num_windows in range(1, 30):
        for num_ranks in (1, 2, 3):
            for batch_size in (1, 2, 4):
                of_ranks = [
                    list(
                        EvaluationBatches(
                            num_windows, batch_size=batch_size, rank=rank, num_ranks=num_ranks
                        )
                    )
                    for rank in range(num_ranks)
                ]
                assert len({len(batches) for batches in of_ranks}) == 1
                rows = [n for batches in of_ranks for batch in batches for n in batch]
                assert all(len(batch) == batch_size for batches in of_ranks for batch in batches)
                assert sorted(n for n in rows if n >= 0) == list(range(num_windows))
                assert all(0 <= ~n < num_windows for n in rows if n < 0)


def test_step_samples_refuses_what_cannot_be() -> None:
    for consumed, batch_size, rank, num_ranks in [(-1, 1, 0, 1), (0, 0, 0, 1), (0, 1, 2, 2)]:
        with pytest.raises(EvoDataError):
            next(step_samples(consumed, batch_size=batch_size, rank=rank, num_ranks=num_ranks))


# ---- what it reads


def ready(module: GenomeDataModule) -> GenomeDataModule:
    module.prepare_data()
    module.setup("fit")
    return module


def test_a_folder_of_fasta_becomes_batches(genomes: Path) -> None:
    module = ready(GenomeDataModule(str(genomes), context_length=32, batch_size=3))
    loader = module.train_dataloader()
    batches = list(loader)
    # (699 + 44 + 332 + 2) targets; 21 + 1 + 10 whole windows; rests of 28, 13, 13 and 3 bases
    # (with the first of each) fill two more: 28 + 1 + 3, and 13 + 1 + 13.
    assert len(loader) == len(batches) == 12
    assert module.windows is not None
    assert len(module.windows) == 34
    for batch in batches:
        assert {name: (tuple(x.shape), x.dtype) for name, x in batch.items()} == {
            "input_ids": ((3, 32), torch.int64),
            "targets": ((3, 32), torch.int64),
            "weights": ((3, 32), torch.float32),
            "group": ((3,), torch.int64),
        }
        assert torch.equal(batch["input_ids"][:, 1:], batch["targets"][:, :-1])
    scored = sum(float(batch["weights"].sum()) for batch in batches[:-1]) + float(
        batches[-1]["weights"][:1].sum()
    )
    assert scored == module.windows.num_targets == 1077
    assert module.group_names == ["genomes"]
    assert module.val_dataloader() == []


def test_the_cache_is_used_again_until_a_file_changes(genomes: Path, tmp_path: Path) -> None:
    def folders() -> set[str]:
        return {path.name for path in (tmp_path / "mine").iterdir() if path.is_dir()}

    def module() -> GenomeDataModule:
        return GenomeDataModule([str(genomes)], context_length=32, cache_dir=str(tmp_path / "mine"))

    ready(module())
    first = folders()
    assert len(first) == 1
    manifest = tmp_path / "mine" / first.pop() / "manifest.json"
    stamp = manifest.stat().st_mtime_ns
    ready(module())
    assert manifest.stat().st_mtime_ns == stamp
    write_fasta(genomes / "two.fa", random_text(9, 200))
    again = ready(module())
    assert len(folders()) == 2
    assert again.windows is not None
    assert again.windows.corpus.num_bases == 945
    # A corpus is taken as it is.
    direct = GenomeDataModule(str(again.windows.corpus.path), context_length=32)
    direct.setup("fit")
    assert direct.windows is not None
    assert direct.windows.digest == again.windows.digest


def test_what_preparing_leaves_out_is_said(genomes: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_fasta(genomes / "three.fa", random_text(1, 700), "", random_text(8, 60))
    with caplog.at_level("INFO", logger="evo_toolkit"):
        ready(GenomeDataModule(str(genomes), context_length=32))
        ready(GenomeDataModule(str(genomes), context_length=32))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith(f"preparing {genomes} in ")
    assert said[1].startswith("1 duplicate records and 1 that cannot be used were left out")


def test_runs_that_start_together_prepare_once(
    genomes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    modules = [GenomeDataModule(str(genomes), context_length=32) for _ in range(4)]
    with caplog.at_level("INFO", logger="evo_toolkit"), ThreadPoolExecutor(4) as threads:
        list(threads.map(ready, modules))
    assert sum("preparing" in record.getMessage() for record in caplog.records) == 1


def test_validation_of_each_kind(genomes: Path, tmp_path: Path) -> None:
    other = write_fasta(tmp_path / "other" / "three.fa", random_text(5, 90) + "acgtn" * 10)
    module = ready(
        GenomeDataModule(str(genomes), context_length=32, batch_size=2, val_genomes=str(other))
    )
    batches = list(module.val_dataloader())
    assert module.group_names == ["genomes", "other"]
    # Soft-masked bases count as others do; N does not; 139 targets, ten of them N.
    assert sum(float(batch["weights"].sum()) for batch in batches) == 129
    assert set(torch.unique(torch.cat([batch["weights"].flatten() for batch in batches])).tolist()) == {0.0, 1.0}  # fmt: skip
    assert {int(g) for batch in batches for g in batch["group"]} == {1}

    module = ready(GenomeDataModule(str(genomes), context_length=32, val_contigs=["two*"]))
    assert module.windows is not None and module.val_windows is not None
    assert module.windows.num_targets == 699 + 44
    assert module.val_windows.num_targets == 332 + 2

    module = ready(GenomeDataModule(str(genomes), context_length=32, val_fraction=0.1))
    assert module.windows is not None and module.val_windows is not None
    held = {
        (s.pieces[0].record, p)
        for s in map(module.val_windows.sample, range(len(module.val_windows)))
        for piece in s.pieces
        for p in range(piece.start, piece.stop)
    }
    assert 0.05 < len(held) / 1081 < 0.2


def test_codon_positions_follow_the_targets(genomes: Path, tmp_path: Path) -> None:
    gff = tmp_path / "two.gff"
    gff.write_text("two_0\tx\tCDS\t4\t312\t.\t+\t0\t\ntwo_1\tx\tCDS\t1\t3\t.\t-\t0\t\n")
    module = ready(
        GenomeDataModule(
            str(genomes), context_length=32, batch_size=1, val_contigs=["two*"],
            val_annotations=str(gff), val_strands="both",
        )
    )  # fmt: skip
    assert module.val_windows is not None
    for at, batch in enumerate(module.val_dataloader()):
        window = module.val_windows.sample(at)
        expected = [-1] * 33
        for record, start, stop, first in window.pieces:
            of_genome = list(range(start, stop))[:: 1 if window.strand == "+" else -1]
            for j, p in enumerate(of_genome):
                if record == 2 and 3 <= p < 312:
                    expected[first + j] = p % 3
                elif record == 3:
                    expected[first + j] = 2 - p
        assert batch["codon_position"].tolist() == [expected[1:]]
        assert batch["codon_position"].dtype == torch.int64
    assert "codon_position" not in next(iter(module.train_dataloader()))


def test_gaps_are_cut_out(tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "g" / "gap.fa", "N" * 50 + random_text(1, 300) + "n" * 500 + random_text(2, 100))  # fmt: skip
    module = ready(GenomeDataModule(str(path), context_length=32))
    assert module.windows is not None
    assert module.windows.num_targets == 299 + 99
    whole = ready(GenomeDataModule(str(path), context_length=32, skip_gaps=False))
    assert whole.windows is not None
    assert whole.windows.num_targets == 949


def test_wrong_use_is_said(genomes: Path, tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        (
            {"val_fraction": 0.1, "val_contigs": ["x"]},
            "val_fraction and val_contigs are both given",
        ),
        ({"val_annotations": "x.gff"}, "val_annotations are given, but nothing to validate on"),
        ({"batch_size": 0}, "batch_size 0 must be 1 or more"),
        ({"val_batch_size": 0}, "val_batch_size 0 must be 1 or more"),
        ({"context_length": 0}, "context_length 0"),
        ({"num_workers": -1}, "num_workers -1"),
    ]
    for options, message in wrong:
        with pytest.raises(UsageError, match=message):
            GenomeDataModule(str(genomes), **options).prepare_data()
        with pytest.raises(UsageError, match=message):
            GenomeDataModule(str(genomes), **options).setup("fit")
    with pytest.raises(EvoDataError, match="absent"):
        ready(GenomeDataModule(str(tmp_path / "absent")))
    with pytest.raises(EvoDataError, match="no record is called 'chr9'"):
        ready(GenomeDataModule(str(genomes), val_contigs=["chr9"]))
    corpus = ready(GenomeDataModule(str(genomes), context_length=32)).windows
    assert corpus is not None
    with pytest.raises(UsageError, match="is a corpus already"):
        ready(GenomeDataModule([str(genomes), str(corpus.corpus.path)]))
    gap = write_fasta(tmp_path / "gap" / "gap.fa", "N" * 50)
    with pytest.raises(EvoDataError, match="validation: no window can be cut"):
        ready(GenomeDataModule(str(genomes), context_length=32, val_genomes=str(gap)))
    empty = write_fasta(tmp_path / "short" / "short.fa", "A")
    with pytest.raises(EvoDataError):
        ready(GenomeDataModule(str(empty)))


def test_mostly_padding_is_warned_of(genomes: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="evo_toolkit"):
        ready(GenomeDataModule(str(genomes), context_length=1000, batch_size=1))
        assert not caplog.records
        ready(GenomeDataModule(str(genomes), context_length=5000, batch_size=1))
    assert "only 22 % of what the model reads are bases" in caplog.text


def test_a_batch_larger_than_the_data_is_warned_of(
    genomes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="evo_toolkit"):
        module = ready(GenomeDataModule(str(genomes), context_length=1000, batch_size=1))
        assert module.windows is not None and not caplog.records
        number = len(module.windows)
        ready(GenomeDataModule(str(genomes), context_length=1000, batch_size=number))
        assert not caplog.records
        ready(GenomeDataModule(str(genomes), context_length=1000, batch_size=number + 1))
    assert f"batch_size {number + 1} is more than the {number} training windows" in caplog.text


@pytest.mark.parametrize("share", [0, 1, 1.5, -0.1, float("nan")])
def test_shares_that_hold_out_nothing_or_all_are_wrong_usage(genomes: Path, share: float) -> None:
    with pytest.raises(UsageError, match="must be above 0 and below 1"):
        GenomeDataModule(str(genomes), context_length=32, val_fraction=share).prepare_data()


def test_validating_on_what_is_trained_on_is_warned_of(
    genomes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="evo_toolkit"):
        one = str(genomes / "one.fa")
        ready(GenomeDataModule(str(genomes / "two.fa"), context_length=32, val_genomes=one))
        assert not caplog.records
        ready(GenomeDataModule(str(genomes), context_length=32, val_genomes=[one]))
    assert "2 of 2 records of val_genomes are in the training genomes too (one_0" in caplog.text


def test_windows_cross_to_processes_that_share_nothing(genomes: Path) -> None:
    windows = ready(GenomeDataModule(str(genomes), context_length=32, strands="random")).windows
    assert windows is not None
    copy = pickle.loads(pickle.dumps(WindowDataset(windows)))
    for number in (0, 33, 34, 500, ~7):
        assert copy[number].window.tokens.tobytes() == windows.sample(max(number, ~number)).tokens.tobytes()  # fmt: skip
        assert copy[number].counts == (number >= 0)


# ---- resuming in a real run


class Recorder(LightningModule):
    """Writes down what it is given, and trains a single number."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.read: list[tuple[bytes, ...]] = []
        self.validated = 0
        self.fail_at = fail_at

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if self.fail_at is not None and len(self.read) == self.fail_at:
            raise KeyError("stopped on purpose")
        self.read.append(
            tuple(row.numpy().astype(np.uint8).tobytes() for row in batch["input_ids"])
        )
        return self.weight * batch["weights"].sum()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.validated += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    @property
    def rows(self) -> list[bytes]:
        return [row for batch in self.read for row in batch]


def fit(
    module: GenomeDataModule,
    steps: int,
    root: Path,
    *,
    ckpt_path: str | None = None,
    fail_at: int | None = None,
    **options: Any,
) -> tuple[Recorder, Trainer]:
    recorder = Recorder(fail_at)
    trainer = Trainer(
        default_root_dir=root,
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(recorder, datamodule=module, ckpt_path=ckpt_path, weights_only=True)
    return recorder, trainer


def expected_rows(module: GenomeDataModule, count: int) -> list[bytes]:
    assert module.windows is not None
    return [module.windows.sample(n).tokens[:-1].tobytes() for n in range(count)]


@pytest.mark.parametrize(
    ("first", "second", "stop"),
    [
        ({}, {}, 3),  # within an epoch
        ({}, {}, 9),  # at the end of one (34 windows, 4 a step)
        ({}, {}, 14),  # in the second
        ({}, {"batch_size": 3}, 5),
        ({"batch_size": 7}, {"batch_size": 2}, 7),
        ({"num_workers": 2}, {}, 5),
        ({}, {"num_workers": 1}, 11),
    ],
)
def test_interrupted_is_uninterrupted(
    genomes: Path, tmp_path: Path, first: dict[str, int], second: dict[str, int], stop: int
) -> None:
    def module(options: dict[str, int]) -> GenomeDataModule:
        settings = {"context_length": 32, "batch_size": 4, "seed": 5, **options}
        return GenomeDataModule(str(genomes), val_fraction=None, **settings)  # type: ignore[arg-type]

    before, trainer = fit(module(first), stop, tmp_path)
    path = str(tmp_path / "stopped.ckpt")
    trainer.save_checkpoint(path)
    resumed = module(second)
    after, _ = fit(resumed, stop + 15, tmp_path, ckpt_path=path)
    rows = before.rows + after.rows
    assert len(after.read) == 15
    assert rows == expected_rows(resumed, len(rows))
    assert resumed.consumed == len(rows)


def test_a_step_that_fails_is_read_again(genomes: Path, tmp_path: Path) -> None:
    module = GenomeDataModule(str(genomes), context_length=32, batch_size=4, num_workers=2)
    with pytest.raises(KeyError):
        fit(module, 20, tmp_path, fail_at=11)
    # What the failed step read was not used: it is no part of the state, nor what workers fetched.
    assert module.consumed == 44
    assert module.state_dict()["consumed"] == 44


@pytest.mark.parametrize("options", [{"val_check_interval": 2}, {"limit_train_batches": 4}, {"accumulate_grad_batches": 3}])  # fmt: skip
def test_validation_limits_and_accumulation_do_not_move_the_data(
    genomes: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    def module() -> GenomeDataModule:
        return GenomeDataModule(str(genomes), context_length=32, batch_size=2, val_fraction=0.2)

    before, trainer = fit(module(), 7, tmp_path, **options)
    path = str(tmp_path / "stopped.ckpt")
    trainer.save_checkpoint(path)
    resumed = module()
    after, _ = fit(resumed, 12, tmp_path, ckpt_path=path, **options)
    rows = before.rows + after.rows
    assert len(rows) == 12 * 2 * options.get("accumulate_grad_batches", 1)
    assert rows == expected_rows(resumed, len(rows))
    assert before.validated


def test_a_new_run_begins_at_the_beginning(genomes: Path, tmp_path: Path) -> None:
    before, trainer = fit(GenomeDataModule(str(genomes), context_length=32, batch_size=3), 2, tmp_path)  # fmt: skip
    path = str(tmp_path / "stopped.ckpt")
    trainer.save_checkpoint(path)
    module = GenomeDataModule(str(genomes), context_length=32, batch_size=4)
    after, _ = fit(module, 5, tmp_path, ckpt_path=path)
    again, _ = fit(module, 4, tmp_path)
    assert len(before.rows + after.rows) == 18
    assert again.rows == (before.rows + after.rows)[:16]


def test_other_windows_are_warned_of(
    genomes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = ready(GenomeDataModule(str(genomes), context_length=32))
    state = module.state_dict()
    assert state["consumed"] == 0
    caplog.clear()
    with caplog.at_level("WARNING", logger="evo_toolkit"):
        ready(GenomeDataModule(str(genomes), context_length=32)).load_state_dict(state)
        assert not caplog.records
        ready(GenomeDataModule(str(genomes), context_length=16)).load_state_dict(state)
    assert "trained on other windows" in caplog.text


def test_the_trainer_may_not_deal_the_samples_again(genomes: Path) -> None:
    class Strategy:
        def __init__(self) -> None:
            self.distributed_sampler_kwargs = {"num_replicas": 2, "rank": 1}

    class Connector:
        use_distributed_sampler = True

    class FakeTrainer:
        strategy = Strategy()
        accumulate_grad_batches = 1
        _accelerator_connector = Connector()

    module = ready(GenomeDataModule(str(genomes), context_length=32))
    module.trainer = FakeTrainer()
    with pytest.raises(UsageError, match="use_distributed_sampler"):
        module.train_dataloader()
