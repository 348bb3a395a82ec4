"""`lpkernels doctor`: the facts of this machine, and the advice for machines that lack something."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from lpkernels import cli, ops
from lpkernels.cli import doctor, environment


@pytest.fixture(scope="module")
def facts() -> dict:
    return environment.collect()


@pytest.fixture
def gpu_facts(facts) -> dict:
    """A GPU machine on which nothing is missing, whatever this one is."""
    made = copy.deepcopy(facts)
    made["packages"] = dict.fromkeys(made["packages"], "1.0")
    made["driver"] = "580.65"
    made["tools"] |= {"c++": "g++ 12", "nvcc": "13.0"}
    made["cuda"] = {"torch": "13.0", "cudnn": 91400, "available": True}
    made["gpus"] = [{"name": "GPU", "capability": "8.6", "memory_gib": 12.0, "multiprocessors": 28}]
    build = {"version": "0.1.0", "cuda": "13.0", "architectures": "7.5;8.0;9.0a"}
    made["library"] = {"path": "_ops.so", "error": None, "build": build, "kernels": []}
    return made


def test_every_op_has_a_backend_on_every_device(facts):
    devices = {"cpu", "cuda"} if torch.cuda.is_available() else {"cpu"}
    assert set(facts["ops"]) == set(ops.registry())
    for name, by_device in facts["ops"].items():
        assert set(by_device) == devices
        for device, choice in by_device.items():
            expected = ops.registry()[name].choose(device)
            assert (choice["backend"], choice["passed"]) == (expected.backend, expected.passed)


def test_json_is_the_facts(facts, capsys):
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == facts


def test_text_names_what_matters(facts, capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert facts["lpkernels"] in out
    assert torch.__version__ in out
    for name, by_device in facts["ops"].items():
        assert name in out
        assert all(reason in out for choice in by_device.values() for reason in choice["passed"].values())


def test_ops_that_are_alike_share_their_lines():
    def choice(backend, **passed):
        return {"cuda": {"backend": backend, "passed": passed}}

    names = [f"op_{index:02}" for index in range(20)]
    chosen = {name: choice("triton", cuda="needs a Hopper GPU") for name in names} | {"other": choice(None)}
    lines = list(doctor._op_lines(chosen))
    assert lines[0] == "ops on cuda"
    assert lines.count("          not cuda: needs a Hopper GPU") == 1
    assert any(line.split() == ["cannot", "run", "other"] for line in lines)
    assert all(any(name in line for line in lines) for name in names)
    assert max(map(len, lines)) <= doctor.WIDTH


def test_the_requested_backend_is_shown(monkeypatch, capsys):
    monkeypatch.setenv("LPKERNELS_BACKEND", "ref")
    assert cli.main(["doctor", "--json"]) == 0
    chosen = json.loads(capsys.readouterr().out)["ops"]
    assert {choice["cpu"]["backend"] for choice in chosen.values()} == {"ref"}


def test_an_unknown_backend_is_a_wrong_argument(monkeypatch, capsys):
    monkeypatch.setenv("LPKERNELS_BACKEND", "opencl")
    assert cli.main(["doctor"]) == 2
    assert "'opencl'" in capsys.readouterr().err


def test_nothing_to_advise_where_nothing_is_missing(gpu_facts):
    gpu_facts["advice"] = environment.advice(gpu_facts)
    assert gpu_facts["advice"] == []
    lines = "\n".join(doctor.report(gpu_facts))
    assert "nothing is missing" in lines
    assert "cuda:0 GPU, compute capability 8.6, 12.0 GiB" in lines


def _advice(facts: dict) -> str:
    (item,) = environment.advice(facts)
    return f"{item['missing']} -> {item['mend']}"


def test_no_op_library(gpu_facts):
    gpu_facts["library"] |= {"path": None, "error": "the op library is not built"}
    assert environment.REBUILD in _advice(gpu_facts)
    gpu_facts["tools"]["c++"] = None
    assert "apt install g++" in _advice(gpu_facts)


def test_an_op_library_without_cuda(gpu_facts):
    gpu_facts["library"]["build"] |= {"cuda": "", "architectures": ""}
    assert "FORCE_CUDA=1" in _advice(gpu_facts)
    assert "toolkit" not in _advice(gpu_facts)
    gpu_facts["tools"]["nvcc"] = None
    assert "CUDA toolkit 13.0" in _advice(gpu_facts)


def test_an_op_library_for_other_gpus(gpu_facts):
    gpu_facts["gpus"] = [{**gpu_facts["gpus"][0], "capability": "12.0"}]
    assert "TORCH_CUDA_ARCH_LIST='12.0'" in _advice(gpu_facts)


def test_a_gpu_that_torch_cannot_use(gpu_facts):
    gpu_facts["cuda"]["available"] = False
    assert "update the NVIDIA driver" in _advice(gpu_facts)
    gpu_facts["cuda"]["torch"] = None
    assert "torch is a CPU build" in _advice(gpu_facts)
    gpu_facts["driver"] = None
    assert environment.advice(gpu_facts) == []


def test_a_missing_package(gpu_facts, monkeypatch, capsys):
    gpu_facts["packages"]["av"] = None
    assert "pip install av" in _advice(gpu_facts)
    gpu_facts["advice"] = environment.advice(gpu_facts)
    monkeypatch.setattr(doctor, "collect", lambda: gpu_facts)
    assert cli.main(["doctor"]) == 1
    assert "pip install av" in capsys.readouterr().out


def test_without_torch_the_rest_is_still_reported(monkeypatch, capsys):
    found = environment.installed
    monkeypatch.setattr(environment, "installed", lambda name: None if name == "torch" else found(name))
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "pip install torch" in out
    assert "op library" not in out


def test_kernels_are_listed(gpu_facts):
    kernel = {"name": "flow_warp<half>", "error": None, "threads": 256, "registers": 40, "static_shared_bytes": 768}
    kernel |= {"dynamic_shared_bytes": 256, "local_bytes": 0, "blocks_per_multiprocessor": 6}
    gpu_facts["library"]["kernels"] = [kernel]
    (line,) = [line for line in doctor.report(gpu_facts | {"advice": []}) if "flow_warp<half>" in line]
    assert line.split() == ["flow_warp<half>", "256", "40", "1024", "0", "6"]


def test_kernels_that_cannot_run_here_are_listed_by_the_reason(gpu_facts):
    names = [f"conv_act<{index}x128, halo>" for index in range(12)]
    kernels = [{"name": name, "error": "invalid device function", "threads": 0} for name in names]
    gpu_facts["library"]["kernels"] = [*kernels, {"name": "stitch_mlp", "error": "no GPU"}]
    lines = list(doctor.report(gpu_facts | {"advice": []}))
    assert sum("invalid device function" in line for line in lines) == 1
    assert any(line == "  not here (no GPU): stitch_mlp" for line in lines)
    text = " ".join(line.strip() for line in lines)
    assert all(name in text for name in names)
    assert not any("blocks/SM" in line for line in lines)


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("8.0", "8.0", True),
        ("8.0", "8.6", True),
        ("8.6", "8.0", False),
        ("8.0;9.0a", "9.0", True),
        ("9.0a", "9.1", False),
        ("9.0a", "10.0", False),
        ("7.5+PTX", "12.0", True),
        ("7.5", "12.0", False),
        ("12.0+PTX", "9.0", False),
        ("", "8.0", False),
        ("8.0, 8.6 nonsense", "8.9", True),
    ],
)
def test_which_gpus_a_build_serves(architectures, capability, expected):
    assert environment.covers(architectures, capability) is expected


def test_a_tool_that_fails_or_is_absent_counts_as_missing(monkeypatch):
    assert environment._output("false") is None
    assert environment._output("no-such-program-here") is None
    monkeypatch.setenv("CUDA_HOME", "/nonexistent")
    assert environment.nvcc() is None
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", "")
    assert environment.compiler() is None
