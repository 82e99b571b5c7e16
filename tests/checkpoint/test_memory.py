"""Peak memory of reading and converting: the model and one tensor, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("reads /proc", allow_module_level=True)

MEGABYTE = 1_000_000
# Beyond weights and one tensor: allocator, page tables, pages shared by neighbouring tensors.
SLACK = 24 * MEGABYTE

CHILD = r"""
import json, sys, threading, time
from pathlib import Path

import torch

from evo_toolkit.checkpoint.convert import convert
from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.checkpoint.names import tensor_shapes, weight_bytes
from evo_toolkit.checkpoint.opening import open_source
from evo_toolkit.checkpoint.vortex import vortex_rules
from evo_toolkit.model.config import StripedHyena2Config

torch.set_num_threads(1)
folder = Path(sys.argv[1])


def status(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024


def peak_of(action):
    # 5 resets the high-water mark to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    result = action()
    return status("VmHWM") - before, result


def config_of(layers):
    return StripedHyena2Config(
        name="big", pattern="SDH*" * (layers // 4), width=1024, num_heads=8, mlp_width=2816,
        filter_groups=64, context_length=4096,
    )


def write(path, config):
    content = {}
    for rule in vortex_rules(config):
        wanted = rule.inputs[0]
        fp32 = rule.name.endswith(("log_poles", "residues", "inv_freq"))
        content[wanted.keys[0]] = torch.zeros(wanted.shape, dtype=torch.float32 if fp32 else torch.bfloat16) + 0.01
    torch.save(content, path)


big, small = config_of(8), config_of(4)
write(folder / "big.pt", big)
write(folder / "small.pt", small)
# What is imported or allocated once is not the checkpoint's.
warm = load_model(folder / "small.pt", config=small, device="cpu", precision="vortex")
convert(folder / "small.pt", folder / "small-ours", config=small)
del warm

result = {"file": (folder / "big.pt").stat().st_size, "model": weight_bytes(big, 2)}
shapes = tensor_shapes(big)
result["tensor"] = max(torch.Size(s).numel() for s in shapes.values()) * 2


def iterate():
    for _ in open_source(folder / "big.pt", config=big).source.iter_tensors():
        pass


result["iterate"], _ = peak_of(iterate)
result["convert"], _ = peak_of(lambda: convert(folder / "big.pt", folder / "big-ours", config=big))
result["load"], model = peak_of(lambda: load_model(folder / "big.pt", config=big, device="cpu", precision="vortex"))
del model
result["load_ours"], model = peak_of(lambda: load_model(folder / "big-ours", device="cpu", precision="vortex"))
print(json.dumps(result))
"""


def test_peak_is_the_model_and_one_tensor(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    peak = json.loads(run.stdout)
    print({key: f"{value / MEGABYTE:.0f} MB" for key, value in peak.items()})
    assert peak["file"] > 200 * MEGABYTE
    # A tensor that is laid out anew exists twice for a moment, beside its pages of the file.
    one = 3 * peak["tensor"] + SLACK
    assert peak["iterate"] < one
    assert peak["convert"] < one
    assert peak["load"] < peak["model"] + one
    assert peak["load_ours"] < peak["model"] + one
