"""The levels on the tiny model: they run, they are right, they are kept."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from benchmarks import environment, frame, records, registry, session
from benchmarks.context import Context, Options
from benchmarks.levels import claim, job, warm_up
from benchmarks.networks import NETWORKS, Random
from benchmarks.techniques import Techniques, convert, prepare
from benchmarks.timing import drift, quantile
from lpkernels import ops
from lpkernels.errors import InputError
from lpkernels.models.config import LivePortraitConfig
from tests.benchmarks.fakes import CPU


def options(**fields):
    return Options(**{"device": CPU, "config": "tiny", "seconds": 0.01, "providers": ("baseline-fp32",), **fields})


@pytest.fixture(scope="module")
def context():
    return Context(options())


def test_networks_and_frame_are_measured_and_kept(tmp_path):
    path = tmp_path / "records.json"
    outcome = session.run(["networks", "frame"], options(), path)
    loaded = records.load(path)
    assert outcome.unreached == {}
    assert {one.subject for one in loaded.level("networks")} == {network.name for network in NETWORKS}
    assert all(one.status == "ok" for one in loaded.measurements)
    assert all(one.flops > 0 and one.bytes > 0 for one in loaded.measurements)
    assert loaded.runs[0].ceilings["copy_gbps"] > 0
    session.run(["frame", "throughput"], options(providers=("baseline-fp32", "lpkernels-*")), path, append=True)
    loaded = records.load(path)
    assert loaded.level("frame")[0].repeats_ms
    for level in ("frame", "throughput"):
        ran = {(one.provider, one.batch) for one in loaded.level(level) if one.status == "ok"}
        assert {("lpkernels-animator", 1), ("lpkernels-fp32", 1)} <= ran
    assert ("lpkernels-fp32", 2) in ran


def test_a_spent_budget_is_said(tmp_path):
    outcome = session.run(["ops", "networks"], options(budget=1e-9), tmp_path / "records.json")
    assert set(outcome.unreached) == {"ops", "networks"}
    assert "budget" in outcome.unreached["ops"]


def test_unknown_levels_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected levels"):
        session.run(["kernels"], options(), tmp_path / "records.json")


def test_every_op_has_its_benchmark():
    assert set(registry.op_benchmarks()) == set(ops.registry())


def test_every_level_can_be_imported():
    assert all(callable(registry.measure(level)) for level in registry.LEVELS)


def test_op_subjects_are_right_on_the_cpu():
    context = Context(options(providers=("lpkernels-ref-fp32", "lpkernels-cpu-*", "lpkernels-cuda-fp16")))
    for work in registry.op_subjects(context):
        by_name = {one.provider: one for one in context.harness.measure(work)}
        assert by_name["lpkernels-ref-fp32"].status == "ok", by_name["lpkernels-ref-fp32"].reason
        assert all(one.status in ("ok", "skipped") for one in by_name.values())


@pytest.mark.parametrize(
    ("name", "asked"), [("conv_act", 4), ("conv_pool", 1), ("spade_conv", 6), ("conv_spade", 3), ("spade_blocks", 1)]
)
def test_ops_are_right_with_weights_whose_rows_share_products(monkeypatch, name, asked):
    """As many subjects as the network asks for and as have whole slices of 16 channels in so small a model."""
    packed, pack = [], ops.pack_winograd_weight
    monkeypatch.setattr(ops, "takes_winograd", lambda op, device, dtype, channels, *_, **__: channels % 16 == 0)
    monkeypatch.setattr(ops, "pack_winograd_weight", lambda *weight: packed.append(work.shape) or pack(*weight))
    context = Context(options(providers=("lpkernels-ref-fp32",)))
    for work in registry.op_benchmarks()[name].subjects(context):
        (one,) = context.harness.measure(work)
        assert one.status == "ok", one.reason
    assert len(set(packed)) == asked


@pytest.mark.parametrize("config", ["tiny", "full"])
def test_inputs_have_the_networks_shapes(config):
    sizes = LivePortraitConfig.named(config)
    shapes = [[tuple(tensor.shape) for tensor in network.inputs(sizes, 2, Random(0, CPU))] for network in NETWORKS]
    size = sizes.image_size
    assert shapes[0] == [(2, 3, size, size)]
    if config == "full":
        assert shapes[2] == [(2, 32, 16, 64, 64), (2, 21, 3), (2, 21, 3)]
        assert shapes[3] == [(2, 256, 64, 64)]


def test_the_benchmarks_frame_is_the_animators(context):
    from lpkernels.animate.animator import Animator
    from lpkernels.animate.portrait import draw_portrait

    size = context.config.image_size
    animator = Animator(context.model, draw_portrait(size))
    animator.step(frame.clip(size)[0])
    frames = frame.driving(size, 2, 0, CPU)[0]
    ours = frame.reference(context.model, CPU)(frames)
    for index in range(2):
        theirs = animator.step(frames[index].numpy()).astype(int)
        assert np.abs(ours[index].numpy().astype(int) - theirs).max() <= 1


def test_the_whole_step_is_one_graph_to_a_compiler(context):
    import torch._dynamo

    scene = frame.make_scene(context.model, Techniques(), CPU)
    step = frame.FrameStep(frame.modules(context.model), scene=scene, image_size=context.config.image_size)
    with torch.no_grad():
        report = torch._dynamo.explain(step.__call__)(*frame.driving(context.config.image_size, 1, 0, CPU))
    assert report.graph_break_count == 0


def test_techniques_convert_copies():
    module = torch.nn.Conv2d(4, 4, 3)
    half = convert(module, Techniques(precision="half", channels_last=True))
    assert half.weight.dtype == torch.float16
    assert half.weight.is_contiguous(memory_format=torch.channels_last)
    assert module.weight.dtype == torch.float32
    grown = convert(module, Techniques(no_grad=False, eval_mode=False))
    assert grown.training
    assert grown.weight.requires_grad


def test_techniques_set_and_restore_flags():
    seen = []

    class Probe(torch.nn.Module):
        def forward(self, x):
            cudnn = torch.backends.cudnn
            seen.append((cudnn.benchmark, cudnn.allow_tf32, torch.is_grad_enabled()))
            return x

    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    prepare(Probe(), Techniques(cudnn_benchmark=True, tf32=False), CPU).call(torch.ones(1))
    assert seen == [(True, False, False)]
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32) == before


def test_jobs_in_turn_and_overlapped_give_the_same_frames(context, tmp_path):
    from lpkernels.animate.portrait import write_sample

    source, driving = write_sample(tmp_path, frames=4, size=32)
    made = []
    for overlapped in (False, True):
        candidate = job.job(context.model, source, driving, tmp_path / f"{overlapped}.mp4", overlapped)
        made.append(candidate.call())
        assert set(candidate.extras()) == {"decode_ms", "animate_ms", "encode_ms", "warm_up_ms"}
    assert torch.equal(*made)
    assert made[0].shape[0] == job.CHECKED


def test_the_optimized_models_job_is_measured_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (measured,) = job.measure(Context(options(providers=("*-overlapped",))))
    assert {one.provider: one.status for one in measured} == {
        "animator-fp32-overlapped": "ok",
        "lpkernels-fp32-overlapped": "ok",
    }
    assert list(tmp_path.iterdir()) == []


def test_a_jobs_yardstick_is_one_of_its_ways_and_answers_with_the_checked_frames_alone(tmp_path, monkeypatch):
    from lpkernels.animate.video import VideoReader

    monkeypatch.setattr(job, "_ways", lambda model, device: {"animator-fp16": ("fp16", lambda: model)})
    work = job._subject(Context(options(frames=2 * job.CHECKED)), tmp_path)
    assert {one.name: one.yardstick for one in work.providers} == {
        "animator-fp16-in-turn": True,
        "animator-fp16-overlapped": False,
    }
    candidate = work.providers[0].build()
    written, answers = [], []
    for call in (candidate.answer, candidate.call):
        answers.append(call())
        with VideoReader(tmp_path / "out.mp4") as reader:
            written.append(len(list(reader)))
    assert written == [job.CHECKED, work.frames] == [3, 6]
    assert torch.equal(*answers)
    assert torch.equal(answers[0], work.reference())


def test_a_stage_ahead_passes_errors_on_and_stops_with_its_reader():
    def failing():
        yield np.zeros(1)
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        list(job._ahead(failing()))
    made = []
    endless = (made.append(n) or np.zeros(1) for n in range(10**9))
    ahead = job._ahead(endless)
    next(ahead)
    ahead.close()
    count = len(made)
    time.sleep(0.2)
    assert len(made) == count <= job.QUEUE + 3


def test_a_fresh_process_tells_its_first_frame():
    facts = claim.fresh_process("tiny", "cpu", "baseline-fp32")
    assert min(facts[name] for name in ("prepare_ms", "first_ms", "warm_ms", "unwaited_ms")) > 0
    assert facts["relative_error"] < 1e-3


def test_a_fresh_process_tells_the_parts_of_its_warm_up():
    ((result,),) = warm_up.measure(Context(options(providers=("lpkernels-*",))))
    assert result.status == "ok", result.reason
    parts = [result.extras[f"{part}_ms"] for part in warm_up.PARTS]
    assert min(parts) > 0
    assert result.median_ms == pytest.approx(sum(parts))
    assert result.relative_error < result.tolerance
    assert not list(warm_up.measure(Context(options())))


def test_a_failing_fresh_process_is_skipped(monkeypatch):
    monkeypatch.setattr(claim, "PROVIDERS", {"cpu": ("baseline-fp32",)})
    (result,) = next(iter(claim.measure(Context(options(config="none")))))
    assert result.status == "skipped"
    assert "exit code" in result.reason


def test_the_environment_names_the_machine_and_no_one():
    facts = environment.describe(CPU)
    assert facts["torch"] == torch.__version__
    assert facts["commit"]
    assert environment.slug(CPU) == "cpu"
    assert not {"host", "hostname", "user", "path"} & set(facts)


def test_quantiles_and_drift():
    values = [float(value) for value in np.random.default_rng(0).normal(size=101)]
    assert quantile(values, 0.2) == pytest.approx(np.quantile(values, 0.2))
    assert drift([1.0] * 4 + [2.0] * 4) == pytest.approx(1.0)
    assert drift([1.0] * 7) is None
    with pytest.raises(ValueError, match="empty"):
        quantile([], 0.5)
