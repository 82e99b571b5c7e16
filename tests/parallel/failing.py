"""What becomes of two ranks when one goes wrong: `python failing.py CASE:RANK_THAT_FAILS ...`.

Prints, as JSON, of every case: exit codes of both, what they wrote to stderr, and the seconds.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch.distributed as dist

from evo_toolkit.errors import UsageError
from evo_toolkit.parallel import failure


def rank_of(case: str, who: int, rank: int, store: str) -> None:
    """One rank: all meet until one does not come."""
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2,
        timeout=datetime.timedelta(seconds=600),
    )  # fmt: skip
    watch = failure.RankWatch("127.0.0.1", timeout=5.0)
    try:
        dist.barrier()
        if case != "well" and rank == who:
            go_wrong(case)
        if case == "well":
            time.sleep(6.0)  # longer than a rank may be silent
        if case == "both":
            raise UsageError("the same is wrong everywhere")
        dist.barrier()
    except BaseException as error:
        watch.failed(error)
        if case == "stays":
            time.sleep(900)  # as if the process could not end: its connections stay open
        raise
    watch.stop()


def go_wrong(case: str) -> None:
    if case == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if case == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if case == "told":
        raise SystemExit(143)
    if case in ("raises", "stays"):
        raise OSError("the disk\nis gone")


def begin(case: str, who: int, rank: int, folder: str) -> int:
    """Start a rank in a process of its own, whose stderr is a file of the case; its id."""
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(f"{folder}/{case}{who}.said", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    code = 0
    try:
        rank_of(case, who, rank, f"{folder}/{case}{who}.store")
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException as error:  # noqa: BLE001 (the exit code is the result)
        sys.stderr.write(f"rank {rank} says: {error}\n")
        code = 9
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    failure._INTERVAL, failure._GRACE = 0.2, 0.5
    cases = [(case, int(who)) for case, _, who in (word.partition(":") for word in sys.argv[1:])]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        all_ranks = {key: [begin(*key, rank, folder) for rank in (0, 1)] for key in cases}
        for (case, who), ranks in all_ranks.items():
            codes = [0, 0]
            for rank in (1 - who, who):
                if rank == who and case in ("stopped", "stays"):
                    os.kill(ranks[rank], signal.SIGKILL)
                _, status = os.waitpid(ranks[rank], 0)
                codes[rank] = os.waitstatus_to_exitcode(status)
            said = Path(folder, f"{case}{who}.said").read_text()
            results[f"{case}:{who}"] = [codes, said, time.monotonic() - start]
    print(json.dumps(results))


if __name__ == "__main__":
    main()
