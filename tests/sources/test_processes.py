"""Several processes under torchrun give the results of one, whatever their shares."""

import json
import os
import subprocess
import sys

import pytest
import torch

from evaluation.test_run import arguments, make, numbers
from ovss_refine.cli import main
from ovss_refine.folders.records import iterate
from ovss_refine.sources.processes import ProcessGroup, join


def torchrun(processes, line, command=("-m", "ovss_refine")):
    """Run a command, ours or another, in several processes on this machine."""
    pytest.importorskip("accelerate", reason="several processes need accelerate")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node", str(processes), *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*launch, *line], capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.slow("seven processes import torch")
def test_two_and_three_processes_equal_one(tmp_path):
    """Seven images in shares of 4 and 3, then of 3, 2 and 2."""
    ids = make(tmp_path, "folder", count=7)
    assert main(arguments(tmp_path, "folder", out="one")) == 0
    for processes, shares in ((2, [4, 3]), (3, [3, 2, 2])):
        out = tmp_path / f"of-{processes}"
        done = torchrun(processes, arguments(tmp_path, "folder", out=out.name))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("| refined ") == 1  # one of them reports
        files = sorted(out.glob("records.*.jsonl"))
        assert [len(list(iterate(path))) for path in files] == shares
        kept = [record["id"] for path in files for record, _ in iterate(path)]
        assert sorted(kept) == sorted(ids)
        assert numbers(out) == numbers(tmp_path / "one")
        assert (
            json.loads((out / "manifest.json").read_text())["starts"][0]["processes"] == processes
        )


def test_two_processes_resume_a_run_of_one(tmp_path):
    ids = make(tmp_path, "folder", count=5)
    assert main(arguments(tmp_path, "folder", out="one")) == 0
    assert main(arguments(tmp_path, "folder")) == 0
    path = tmp_path / "out/records.0.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:40])  # as after a kill
    done = torchrun(2, arguments(tmp_path, "folder"))
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path / "out") == numbers(tmp_path / "one")
    kept = [r["id"] for p in (tmp_path / "out").glob("records.*") for r, _ in iterate(p)]
    assert sorted(kept) == sorted(ids)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 7, 16])
def test_shares_cover_the_list_exactly_once(world, count):
    items = list(range(count))
    shares = [ProcessGroup(rank, world, torch.device("cpu")).share(items) for rank in range(world)]
    assert sorted(x for share in shares for x in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_single_process_needs_no_accelerate(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    group = join("cpu")
    assert (group.rank, group.world, group.leads, group.device.type) == (0, 1, True, "cpu")
    assert group.gather(("a", "b")) == ["a", "b"]
    group.wait()
    group.leave()
    with pytest.raises(ValueError, match="`device` must be 'auto' or one that torch can use"):
        join("abacus")


def test_several_processes_need_accelerate_and_their_own_devices(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="must be 'auto' or 'cpu' for 2 processes; got 'cuda:0'"):
        join("cuda:0")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ovss-refine\[eval\]'"):
        join()
