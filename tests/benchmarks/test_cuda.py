"""What only a GPU runs: its wiring with stand-ins for CUDA's graphs and events, and the real thing on a GPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks import frame, harness, session, techniques, timing
from benchmarks.context import Context, Options
from benchmarks.techniques import Graphed, Techniques
from benchmarks.timing import EventSampler, GraphSampler
from tests.benchmarks.fakes import CPU, FakeClock, double, provider, subject
from tests.benchmarks.fakes import harness as fake_harness


class Recording:
    """A CUDA graph's stand-in: it runs the call again at each replay."""

    def __init__(self, call):
        self.replay = call


@pytest.fixture
def graphs(monkeypatch):
    def capture(call, device):
        call()
        return Recording(call)

    monkeypatch.setattr(timing, "capture", capture)
    monkeypatch.setattr(techniques, "capture", capture)
    monkeypatch.setattr(techniques, "require", lambda techniques, device: None)
    monkeypatch.setattr(frame, "require", lambda techniques, device: None)


@pytest.fixture
def events(monkeypatch):
    clock = FakeClock()

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = clock.seconds

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return (end.at - self.at) * 1e3

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    return clock


def test_a_graphed_call_reads_each_calls_inputs(graphs):
    call = Graphed(double, CPU)
    first, second = torch.ones(3), torch.full((3,), 5.0)
    assert torch.equal(call(first), 2 * first)
    assert torch.equal(call(second), 2 * second)


def test_a_replay_behind_another_is_timed_without_its_inputs(events, graphs, monkeypatch):
    monkeypatch.setattr(techniques, "sampler_for", lambda device, kernel: EventSampler(device))
    call = Graphed(lambda x: events.advance(0.002), CPU)
    assert call.replay_ms() is None
    call(torch.ones(1))
    assert call.replay_ms() == pytest.approx(2.0)


def test_events_time_one_call(events):
    sample = EventSampler(CPU).prepare(lambda x: events.advance(0.004), [(1,)])
    assert sample(0) == pytest.approx(4.0)


def test_a_kernels_time_is_that_of_one_call_and_every_input_set_is_visited(events, graphs):
    seen = []

    def kernel(x):
        seen.append(x)
        events.advance(0.002)

    sample = GraphSampler(CPU).prepare(kernel, [(index,) for index in range(13)])
    assert sample(0) == pytest.approx(2.0)
    assert set(seen) == set(range(13))


def test_a_graphed_frame_is_the_eager_frame(graphs):
    model = Context(Options(CPU, "tiny")).model
    graphed = frame.build(model, Techniques(cuda_graph=True), CPU).call
    with torch.no_grad():
        for seed in range(2):
            inputs = frame.driving(model.config.image_size, 2, seed, CPU)
            assert torch.equal(graphed(*inputs), frame.reference(model, CPU)(*inputs))


def test_a_kernels_inputs_rotate_past_the_l2(monkeypatch):
    class Properties:
        L2_cache_size = 8 * 4 * 10

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    one = fake_harness(FakeClock())
    work = subject(kernel=True)
    one.device = torch.device("cuda")
    assert len(one._input_sets(work)) == min(harness.MOST_INPUT_SETS, 10 * harness.ROTATION_OF_L2)
    assert len(one._input_sets(subject(kernel=False))) == 2


@pytest.mark.gpu
def test_ops_networks_and_frame_on_the_gpu(tmp_path):
    subjects = ("flow_warp", "spade_conv", "motion_extractor", "warping_module")
    # Nothing whose compiler takes longer than all measurements: PyTorch's, and Triton for whole networks.
    exclude = ("*compile*", "*-triton-*", "*-no-hopper", "lpkernels-bf16", "lpkernels-fp32")
    options = Options(torch.device("cuda"), "tiny", seconds=0.05, subjects=subjects, exclude=exclude)
    kept = session.run(["ops", "networks", "frame", "techniques"], options, tmp_path / "records.json").records
    assert kept.runs[0].ceilings["fp16_tflops"] > kept.runs[0].ceilings["fp32_tflops"]
    by_provider = {(one.level, one.subject, one.provider): one for one in kept.measurements}
    graphed = by_provider[("frame", "frame", "graph-amp")]
    assert graphed.status == "ok", graphed.reason
    assert graphed.median_ms < by_provider[("frame", "frame", "baseline-amp")].median_ms
    assert graphed.peak_mb > 0
    for one in kept.measurements:
        assert "compile" not in one.provider
        excused = one.provider == "train mode" or one.level == "ops" or "same again" in (one.reason or "")
        assert one.status == "ok" or excused, (one.key, one.reason)


@pytest.mark.gpu
def test_a_compiled_network_is_timed_on_the_gpu_or_says_why_not(tmp_path):
    providers = ("baseline-fp32", "compile-reduce-overhead")
    options = Options(torch.device("cuda"), "tiny", seconds=0.05, subjects=("motion_extractor",), providers=providers)
    kept = session.run(["networks"], options, tmp_path / "records.json").records
    baseline, compiled = kept.measurements
    assert (baseline.provider, compiled.provider) == providers
    assert baseline.status == "ok", baseline.reason
    if compiled.status == "ok":
        assert compiled.median_ms > 0
    else:
        assert compiled.status in ("fell-back", "skipped"), compiled.reason
        assert compiled.reason


@pytest.mark.gpu
def test_a_slow_provider_is_slower_on_the_gpu():
    x = torch.randn(4096, 4096, device="cuda")

    def slow(value):
        for _ in range(20):
            x @ x
        return double(value)

    clock = FakeClock()
    work = subject(
        provider("fast", clock, 0.0),
        provider("slow", clock, 0.0, slow),
        inputs=lambda seed: (torch.randn(8, generator=torch.Generator("cuda").manual_seed(seed), device="cuda"),),
        kernel=True,
    )
    fast, slowed = harness.Harness(torch.device("cuda")).measure(work)
    assert slowed.median_ms > 10 * fast.median_ms
