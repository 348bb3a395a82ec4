"""lpkernels' own providers: right on the CPU, recorded as on a GPU, and honest about the backends that ran."""

from __future__ import annotations

import contextlib
import os

import pytest
import torch

from benchmarks import backends, frame, own, techniques
from benchmarks.context import Context, Options
from benchmarks.levels import networks as networks_level
from benchmarks.networks import NETWORKS, Random
from benchmarks.own import FORMS, Form
from benchmarks.techniques import Graphed
from benchmarks.work import Unavailable, relative_error
from lpkernels import ops
from lpkernels.fused.warping_network import FusedWarpingNetwork
from lpkernels.ops._op import NO_HOPPER
from tests.benchmarks.fakes import CPU

FP32 = Form("fp32")
BY_NAME = {network.name: network for network in NETWORKS}


@pytest.fixture(scope="module")
def context():
    return Context(Options(CPU, "tiny", seconds=0.01, providers=("lpkernels-*",)))


@pytest.fixture
def graphs(monkeypatch):
    """CUDA graphs' stand-in: a replay runs the call again on the recorded inputs."""

    class Recording:
        def __init__(self, call):
            self.replay = call

    def capture(call, device):
        call()
        return Recording(call)

    monkeypatch.setattr(techniques, "capture", capture)
    monkeypatch.setattr(own, "recorded", Graphed)


def inputs(context, name, seed, batch=1):
    return BY_NAME[name].inputs(context.config, batch, Random(seed, CPU))


@pytest.mark.parametrize("name", BY_NAME)
def test_every_network_is_right_and_names_its_backends(context, name):
    (result,) = [
        one
        for one in context.harness.measure(networks_level.subject(BY_NAME[name], context))
        if one.provider == "lpkernels-fp32"
    ]
    assert (result.status, result.precision) == ("ok", "fp32"), result.reason
    used = result.extras["backends"]
    assert set(used) <= set(ops.registry())
    if name in ("warping_module", "spade_generator", "motion_extractor", "keypoints"):
        assert used
        assert all(backend in ("cpu", "ref") for backend in used.values())


def test_half_precision_and_other_gpus_are_said_to_need_a_gpu(context):
    found = context.harness.measure(networks_level.subject(BY_NAME["stitching"], context))
    skipped = {one.provider: one.reason for one in found if one.status == "skipped"}
    assert set(skipped) == {"lpkernels-fp16", "lpkernels-bf16"}
    assert all("emulates" in reason for reason in skipped.values())
    with pytest.raises(Unavailable, match="CUDA device"):
        Form("fp32", hopper=False).require(CPU)


def test_only_what_a_frame_runs_has_a_form_for_other_gpus(context):
    names = {
        network.name
        for network in NETWORKS
        if own.has_form(network.module(context.model), FORMS["lpkernels-fp16-no-hopper"])
    }
    assert names == {"motion_extractor", "warping_module", "spade_generator"}


def test_tf32_is_called_so():
    assert FP32.works_in(torch.device("cuda")) == "tf32"
    assert Form("bf16").works_in(torch.device("cuda")) == "bf16"
    assert FP32.works_in(CPU) == "fp32"


def test_what_depends_on_the_source_is_computed_once_for_each(context, graphs, monkeypatch):
    prepared = []
    prepare = FusedWarpingNetwork.prepare

    def counting(self, feature_3d):
        prepared.append(feature_3d)
        return prepare(self, feature_3d)

    monkeypatch.setattr(FusedWarpingNetwork, "prepare", counting)
    network = BY_NAME["warping_module"]
    module = network.module(context.model)
    candidate = own.of_network(module, FP32, CPU)
    sets = [inputs(context, "warping_module", seed) for seed in range(2)]
    other_pose = (sets[0][0], sets[1][1], sets[0][2])
    for arguments in (*sets, *sets, other_pose):
        answer = candidate.call(*arguments)["out"]
        assert relative_error(answer, module(*arguments)["out"]) < 1e-4
    assert [id(feature) for feature in prepared] == [id(arguments[0]) for arguments in sets]
    facts = candidate.extras()
    assert facts["compared"] == "out"
    assert facts["prepare_ms"] > 0
    assert "not timed" in facts["note"]
    assert "a replay" in facts["note"]


@pytest.mark.parametrize("name", ["motion_extractor", "spade_generator", "keypoints"])
def test_a_recorded_network_reads_each_calls_inputs(context, graphs, name):
    network = BY_NAME[name]
    module = network.module(context.model)
    candidate = own.of_network(module, FP32, CPU)
    assert "replay_ms" not in candidate.extras()
    for seed in (0, 1):
        arguments = inputs(context, name, seed)
        assert relative_error(candidate.call(*arguments), module(*arguments)) < 1e-4
    facts = candidate.extras()
    assert facts["replay_ms"] > 0
    assert f"{facts['replay_ms']:.3g} ms a replay" in facts["note"]


def test_the_environment_is_put_back(monkeypatch):
    monkeypatch.delenv(NO_HOPPER, raising=False)
    with contextlib.suppress(RuntimeError), backends.without_hopper():
        assert os.environ[NO_HOPPER] == "1"
        raise RuntimeError
    assert NO_HOPPER not in os.environ
    monkeypatch.setenv(NO_HOPPER, "0")
    with backends.without_hopper():
        assert os.environ[NO_HOPPER] == "1"
    assert os.environ[NO_HOPPER] == "0"


def test_the_setting_holds_while_a_shape_is_met_and_no_longer(monkeypatch):
    monkeypatch.delenv(NO_HOPPER, raising=False)
    seen = []
    call = own.Watched(lambda x: seen.append(os.environ.get(NO_HOPPER)), Form("fp16", hopper=False))
    for size in (2, 2, 3, 2):
        call(torch.ones(size))
    assert seen == ["1", None, "1", None]


def test_backends_are_noted_where_they_ran_and_are_themselves_again():
    before = {name: dict(op.backends) for name, op in ops.registry().items()}
    seen: backends.Seen = {}
    x = torch.randn(1, 4, 4, 16)
    with contextlib.suppress(RuntimeError), backends.watched(seen):
        ops.instance_norm_stats(x)
        raise RuntimeError
    ops.instance_norm_stats(x)
    with ops.use_backend("ref"), backends.watched(seen):
        ops.instance_norm_stats(x)
    assert seen == {"instance_norm_stats": {"ref"}}
    assert {name: dict(op.backends) for name, op in ops.registry().items()} == before
    assert backends.by_op({"b": {"triton", "cuda"}, "a": {"ref"}}) == {"a": "ref", "b": "cuda, triton"}
    assert backends.by_backend({"b": {"triton", "cuda"}, "a": {"triton"}}) == "cuda: b; triton: a, b"


@pytest.mark.parametrize("hopper", [True, False])
def test_a_gpu_without_hopper_kernels_is_no_second_provider(monkeypatch, hopper):
    class Op:
        def choose(self, device_type):
            native = hopper and os.environ.get(NO_HOPPER) != "1"
            return ops.Choice("cuda" if native else "triton", {})

    monkeypatch.setattr(backends.ops, "registry", lambda: {"conv_act": Op()})
    reason = backends.same_without_hopper(torch.device("cuda"))
    assert (reason is None) == hopper
    assert hopper or "same again" in reason


def test_the_optimized_animator_animates_the_benchmarks_frame(context):
    candidate = frame.build_own(context.model, FP32, CPU)
    assert candidate.another is not None
    other, reference = candidate.another(), frame.reference(context.model, CPU)
    for batch, seed in ((2, 0), (2, 1)):
        frames = frame.driving(context.config.image_size, batch, seed, CPU)
        truth = reference(*frames)
        for call in (candidate.call, other):
            assert relative_error(call(*frames), truth) < 5e-4
    assert candidate.extras()["backends"]["spade_conv"] == "ref"


@pytest.mark.gpu
def test_other_gpus_backends_run_beside_the_usual_ones():
    options = Options(torch.device("cuda"), "full", seconds=0.05, providers=("lpkernels-fp16*",))
    context = Context(options)
    for name in ("warping_module", "spade_generator"):
        found = {one.provider: one for one in context.harness.measure(networks_level.subject(BY_NAME[name], context))}
        usual, other = found["lpkernels-fp16"], found["lpkernels-fp16-no-hopper"]
        assert usual.status == "ok", usual.reason
        if other.status == "skipped":
            assert "same again" in other.reason
        else:
            assert other.extras["backends"] != usual.extras["backends"]
