"""`--executor ray` on an emulated cluster of two machines, and with a worker that is killed.

Needs Ray, which is no part of the development installation: pip install 'evo-toolkit[ray]'.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evo_data.contigs import ContigAliases
from evo_data.demo_data import demo_file
from evo_data.fasta import Fasta
from evo_data.vcf import VariantReader
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.variants.chunks import cut
from evo_toolkit.variants.ray_executor import RayWorkers
from evo_toolkit.variants.run import Places, Workload
from evo_toolkit.variants.workers import ChunkScorer, WorkerSetting, score_chunks

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.slow

VCF, FASTA = demo_file("rbcL_psbA.vcf"), demo_file("NC_000932.fa")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines of one processor each, both on this one."""
    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20}
    made = cluster_utils.Cluster(initialize_head=True, head_node_args=node)
    made.add_node(num_cpus=1, object_store_memory=80 << 20)
    # What pytest puts on the path by itself the workers need, too.
    paths = [str(Path(FASTA).parents[3] / part) for part in ("", "kernels", "data")]
    ray.init(
        address=made.address, log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": ":".join([*paths, os.environ.get("PYTHONPATH", "")])}},
    )  # fmt: skip
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def setting(toy_model_dir: Path) -> WorkerSetting:
    genome = Fasta(FASTA)
    return WorkerSetting(
        model=str(toy_model_dir), precision="default", allow_inaccurate=False, genome=genome,
        contigs=ContigAliases(genome.lengths), workload=Workload(Places([0] * 32 + [10]), 30, 1),
    )  # fmt: skip


def test_both_machines_score_and_a_killed_worker_is_replaced(
    cluster: Any, setting: WorkerSetting
) -> None:
    with VariantReader(VCF) as reader:
        records = list(reader)
    alone = ChunkScorer.opened(setting, "cpu")
    expected = [scored.alleles for scored in alone.run.scorer.score(records)]
    workers = RayWorkers(setting, "all", "cpu")
    try:
        assert workers.info == alone.info
        places = ray.get([actor.place.remote() for actor in workers._actors])
        assert len({node for node, _ in places}) == 2
        found = []
        for scored in score_chunks(cut(records, 6), workers):
            found.append(scored.alleles)
            if len(found) == 1:
                os.kill(places[0][1], signal.SIGKILL)
        assert repr(found) == repr(expected)
        assert sum(workers._deaths.values()) >= 1
        # Its place was taken, if only the others left it time to load the model.
        assert len(workers._actors) + len(workers._starting) == 2
        now = ray.get([actor.place.remote() for actor in workers._actors])
        assert places[0] not in now and places[1] in now
    finally:
        workers.close()


def test_what_cannot_be_is_told(cluster: Any, setting: WorkerSetting) -> None:
    for devices, device, said in (
        ("9", "cpu", "has room for 4"),
        ("no", "cpu", "neither all nor a number"),
        ("all", "cuda", "has no GPU"),
        ("all", "cuda:1", "leave --device cuda:1 out"),
    ):
        with pytest.raises(UsageError, match=said):
            RayWorkers(setting, devices, device)


def test_an_error_of_the_run_is_raised_here(cluster: Any, setting: WorkerSetting) -> None:
    import dataclasses

    broken = dataclasses.replace(setting, options={"window": 5})
    with pytest.raises(EvoError, match="window 5 is too small"):
        RayWorkers(broken, "1", "cpu")
