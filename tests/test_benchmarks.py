"""What the benchmarks share, and that each runs; benchmarks/quality.py is tested with the evaluation."""

import json
import os

import pytest
import torch
from conftest import pictures, save_all

import benchmarks
import rollnumber_04 as gan
from benchmarks import gpu, scaling, throughput


def test_the_machine_is_named(monkeypatch):
    cores = f"{os.cpu_count()} cores"
    path = benchmarks.Path
    monkeypatch.setattr(path, "read_text", lambda self, **_: "processor : 0\nmodel name\t: Some(R) CPU\ncache : 1")
    assert benchmarks.machine().endswith(f"{cores} (Some CPU)")
    monkeypatch.setattr(path, "read_text", lambda self, **_: open("/no/such/file"))
    monkeypatch.setattr(benchmarks.platform, "processor", lambda: "arm")  # as macOS has it
    assert benchmarks.machine().endswith(f"{cores} (arm)")
    monkeypatch.setattr(benchmarks.platform, "processor", lambda: "")
    assert benchmarks.machine().endswith(cores)


def test_loops_take_turns_when_they_are_warm(monkeypatch):
    did, clock = [], iter(range(100))
    monkeypatch.setattr(benchmarks.time, "perf_counter", lambda: next(clock) ** 2)
    loops = {name: lambda count, name=name: did.append((name, count)) for name in "ab"}
    rates = benchmarks.in_turns(loops, 12, 2, 3, torch.device("cpu"))
    assert did == [("a", 3), ("b", 3), *[("a", 12), ("b", 12)] * 2]
    assert rates == {"a": [12 / 1, 12 / 9], "b": [12 / 5, 12 / 13]}
    assert benchmarks.middle([3, 1, 7]) == (3, [1, 7])


def test_throughput_of_two_loops(tmp_path, capsys):
    data = save_all(pictures(24), tmp_path / "data").parent / "data"
    words = ["--data", str(data), "--batch-sizes", "8", "--rounds", "2", "--images", "16", "--device", "cpu"]
    words += ["--precision", "fp32", "--json", "--out", str(tmp_path / "found.json")]
    assert throughput.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["command"].startswith("python -m benchmarks.throughput --data")
    assert found["tool"] == gan.__version__
    (row,) = found["results"]
    assert (row["batch_size"], row["precision"], row["rounds"]) == (8, "fp32", 2)
    assert row["ratio_from_to"][0] <= row["ratio"] <= row["ratio_from_to"][1]
    assert row["share_of_the_limit"] == pytest.approx(row["images_per_s"]["own"] / row["limit_images_per_s"])
    assert "batch  textbook" in throughput.text(found)


def test_a_multiplication_counts_as_two_operations():
    config = gan.Config(batch_size=2, seed=0, image_size=8, latent_dim=4, width_g=4, width_d=4, translation=False)
    # G: 4 → 4×4×4, 4 → 3 by 4×4 on 4×4. D: 3 → 4 by 4×4 on 4×4, 4 → 1 by 4×4. Each image passes D or G so often,
    # forward, by the weights and by what comes in.
    g, d = (4 * 64, 4 * 3 * 16 * 16), (3 * 4 * 16 * 16, 4 * 16)
    forward = 2 * sum(g) + 3 * sum(d)
    backward = 2 * sum(g) - g[0] + 2 * (2 * sum(d) - d[0]) + sum(d)
    assert throughput.flops_of_a_step(config, 3, torch.device("cpu")) == 2 * 2 * (forward + backward)


def test_efficiency_is_the_rate_over_that_of_one_process(monkeypatch, capsys):
    one, two = iter([100, 300, 110, 310, 90, 290]), iter([150, 160, 140])  # one of a thread and of all cores in turn
    monkeypatch.setattr(scaling, "rate", lambda processes, threads, options: next(one if processes == 1 else two))
    monkeypatch.setattr(scaling.os, "cpu_count", lambda: 2)
    assert scaling.main(["--processes", "1", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images_per_s"] == {"1": 100, "2": 150}
    assert found["from_to"] == {"1": [90, 110], "2": [140, 160]}
    assert found["efficiency"] == {"1": 1.0, "2": 0.75}
    assert found["one_process_with_all_cores"] == 300


def test_what_fails_on_a_gpu_is_said_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    asked = []

    def run(words, seconds):
        asked.append(words)
        return {"status": int("graph" in words)}

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu, "whole_run", lambda options, common: {"status": 0, "seconds": 1})
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path / "gpu.json")]) == 1
    assert [words[-1] for words in asked] == ["kernels", "graph", "compiled"]
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert found["failed"] == ["throughput, captured"]
    assert found["whole run"]["seconds"] == 1
    said = capsys.readouterr()
    assert "throughput, captured: FAILED in" in said.err
    assert said.out == "failed: throughput, captured\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "nowhere"], "--data nowhere: there is no such file or folder"),
        (["--rounds", "0"], "--rounds: 0 is not a whole number from 1 to 1000"),
        (["--out", "a/b/c.json"], "--out"),
        (["--device", "cuda:99"], "--device cuda:99: not available on this machine"),
    ],
)
def test_mistakes_are_one_sentence(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("a file")
    assert throughput.main(words) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("python -m benchmarks.throughput: ")
    assert said in complaint
    assert complaint.count("\n") == 1
