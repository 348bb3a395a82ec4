"""What readers see: tables, figures, the report, README's blocks."""

from __future__ import annotations

import io
import itertools

import pytest
from PIL import Image

from benchmarks import claim, plot_kernels, plots, readme, records, report, sections, tables
from lpkernels.errors import InputError
from tests.benchmarks.fakes import measured
from tests.benchmarks.fakes import records as fake_records


def refused():
    one = measured("wrong", status="refused", reason="relative error 1.0e+00 exceeds 2.0e-03", relative_error=1.0)
    one.median_ms = one.p20_ms = one.p80_ms = one.p99_ms = one.build_s = None
    one.warmup_ms = []
    return one


@pytest.fixture
def kept():
    networks = [
        measured(provider, time, level="networks", subject=network)
        for provider, time in (("baseline-amp", 5.0), ("compile-reduce-overhead", 2.0))
        for network in plots.FRAME_NETWORKS
    ]
    return fake_records(
        measured("baseline-fp32", 40.0, precision="fp32"),
        measured("baseline-amp", 29.5, peak_mb=900.0, steady_mb=700.0),
        measured("compile-reduce-overhead", 6.5),
        measured("lpkernels-fp16", 2.0, peak_mb=450.0, steady_mb=400.0),
        measured("graph-half-channels-last", 6.0, repeats_ms=[7.0]),
        refused(),
        *networks,
        measured("lpkernels-cuda-fp16", 0.02, level="ops", subject="flow_warp"),
        *(measured("baseline-amp", 20.0 * n, level="throughput", batch=n, frames=n) for n in (1, 2, 4)),
        measured("baseline-amp", 29.5, level="streams", extras={"streams": 1, "p99_delay_ms": 31.0}),
        measured("animator-fp16-in-turn", 900.0, level="job", frames=30, extras={"decode_ms": 90.0}),
        measured(
            "lpkernels-fp16",
            9000.0,
            level="warm-up",
            shape="a fresh process, Triton's cache cold",
            extras={"import_ms": 3000.0, "optimize_ms": 1500.0, "first_frame_ms": 4500.0},
        ),
        measured("original", 60.0, level="programs", subject="loop", extras={"same_as_original": True, "speedup": 1.0}),
        measured(
            "accelerated", 6.0, level="programs", subject="loop", extras={"same_as_original": False, "speedup": 10.0}
        ),
        measured(
            "lpkernels-fp16",
            3.0,
            level="endurance",
            subject="frames",
            extras={"frames": 10_000, "differing": 0, "first": {"median_ms": 3.0}, "growth_mb": {"host_mb": -0.5}},
        ),
        measured("plain fp32", 60.0, level="techniques", extras={"added_to": None}),
        measured("no gradients", 40.0, level="techniques", extras={"added_to": "plain fp32"}),
        measured(
            "baseline-fp32", 580.0, level="claim", extras={"prepare_ms": 900.0, "warm_ms": 40.0, "unwaited_ms": 10.0}
        ),
        measured(
            "baseline-amp", 590.0, level="claim", extras={"prepare_ms": 900.0, "warm_ms": 29.5, "unwaited_ms": 10.0}
        ),
    )


def test_a_refused_providers_time_is_not_in_the_table(kept):
    text = tables.timings(kept, [refused()]).terminal()
    assert "refused" in text
    assert "ms" not in text.splitlines()[2].replace("error", "")


def test_every_time_has_its_error_beside_it(kept):
    table = tables.timings(kept, kept.measurements)
    median, error = table.heading.index("median"), table.heading.index("error")
    assert all(row[error] for row in table.rows if row[median])


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.0123, "12.3 µs"), (0.25, "0.25 ms"), (29.5, "29.5 ms"), (582.4, "582 ms")],
)
def test_milliseconds(value, text):
    assert tables.milliseconds(value) == text


def test_markdown_and_html_escape(kept):
    table = tables.Table(["a", "b"], [["x|y", "<b>"]])
    assert "x\\|y" in table.markdown()
    assert "&lt;b&gt;" in table.html()


def test_skipped_providers_are_listed_once_with_their_reason():
    one, two = (measured(name, status="skipped", reason="needs a GPU") for name in ("a", "b"))
    assert tables.skipped([one, two, one]).rows == [["frame", "needs a GPU", "a, b"]]


def test_all_figures_are_drawn_and_are_pictures(kept):
    figures = plots.draw(kept)
    assert set(figures) == {"frame", "networks", "ops", "techniques", "roofline", "throughput", "warmup"}
    for data in figures.values():
        picture = Image.open(io.BytesIO(data)).convert("L")
        assert picture.width > 800
        assert picture.getextrema()[0] < 100  # something is drawn


def test_kernels_stand_beside_pytorch_with_the_gain_and_their_error():
    ops = [
        measured("baseline-fp32", 4.0, level="ops", subject="slow", precision="fp32"),
        measured("baseline-half", 2.0, level="ops", subject="slow"),
        measured("lpkernels-triton-fp16", 1.0, level="ops", subject="slow"),
        measured("lpkernels-cuda-fp16", 0.5, level="ops", subject="slow", relative_error=3e-4),
        measured("lpkernels-cuda-fp16", 9.0, level="ops", subject="wrong", status="refused"),
        measured("lpkernels-cuda-fp32", 0.1, level="ops", subject="alone"),
    ]
    (axes,) = plot_kernels.kernels(fake_records(*ops)).axes
    assert [label.get_text().partition(",")[0] for label in axes.get_yticklabels()] == ["slow", "alone"]
    assert [text.get_text() for text in axes.texts] == ["4x   error 3e-04", "error 1e-03"]


def test_names_in_the_roofline_do_not_cover_each_other():
    close = [
        measured("lpkernels-cuda-fp16", 1.0 + 0.01 * n, level="ops", subject=f"kernel_{n}", flops=10**12, bytes=10**9)
        for n in range(6)
    ]
    figure = plot_kernels.roofline(fake_records(*close))
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text().startswith("kernel")]
    assert len(boxes) == 6
    heights = sorted((box.y0 + box.y1) / 2 for box in boxes)
    assert min(b - a for a, b in itertools.pairwise(heights)) > 0.8 * boxes[0].height


def test_figures_without_records_are_left_out():
    assert plots.draw(fake_records()) == {}


def test_the_report_is_one_file_with_everything_in_it(kept, tmp_path):
    figures = plots.draw(kept)
    text = report.write(kept, figures, tmp_path / "report.html").read_text()
    assert text.count("data:image/png;base64,") == len(figures)
    assert "http" not in text.replace("https://ui.perfetto.dev", "")
    for needed in ("Fake GPU", "refused: relative error", "488 times", "did not repeat", "Ceilings", "1.50x"):
        assert needed in text


def test_the_claim_is_taken_apart(kept):
    text = " ".join(claim.remarks(kept))
    assert "14.5 times a warm one" in text
    assert "25% of a warm frame" in text
    assert "290 times" in text
    assert claim.table(fake_records()) is None


def test_repeatability_names_what_did_not_repeat(kept):
    lines = sections.repeatability(kept)
    assert any("graph-half-channels-last did not repeat" in line for line in lines)
    assert "No median" in sections.repeatability(fake_records(measured()))[0]


@pytest.fixture
def results(kept, tmp_path):
    records.save(kept, tmp_path / "results" / "fake-gpu" / "records.json")
    return tmp_path / "results"


def test_ours_is_set_against_the_originals_default_and_the_fastest_of_pytorch(kept):
    table = sections.compared(kept, "frame")
    assert table.heading[2:] == ["median", "vs baseline-amp", "vs compile-reduce-overhead", "error", "peak memory"]
    (own,) = [row for row in table.rows if row[1] == "lpkernels-fp16"]
    assert own[2:5] == ["2.00 ms", "14.75x", "3.25x"]
    assert own[-1] == "450 MiB (0.50x)"
    (amp,) = [row for row in table.rows if row[1] == "baseline-amp"]
    assert amp[-1] == "900 MiB"
    assert sections.compared(kept, "ops") is None
    rows = {row[0]: row for row in sections.throughput(kept.level("throughput")).rows}
    assert rows["4"][5:7] == ["1.00x", ""]


def test_the_parts_of_the_warm_up_are_shown(kept):
    table = sections.warm_up(kept.level("warm-up"))
    assert dict(zip(table.heading, table.rows[0], strict=True))["optimize"] == "1500 ms"


def test_readme_blocks_are_written_from_the_records(results, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- bench:begin fake-gpu/frame -->\nold\n<!-- bench:end fake-gpu/frame -->\nb\n")
    assert readme.update(path, write=False, results=results) == ["fake-gpu/frame"]
    assert "old" in path.read_text()
    assert readme.update(path, results=results) == ["fake-gpu/frame"]
    text = path.read_text()
    assert text.startswith("a\n")
    assert text.endswith("\nb\n")
    assert "29.5 ms" in text
    assert "4.92x" in text
    assert readme.update(path, results=results) == []


def test_a_number_typed_into_readme_is_noticed(results, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("<!-- bench:begin fake-gpu/networks -->\n<!-- bench:end fake-gpu/networks -->\n")
    readme.update(path, results=results)
    path.write_text(path.read_text().replace("5.00 ms", "0.50 ms"))
    assert readme.update(path, write=False, results=results) == ["fake-gpu/networks"]


@pytest.mark.parametrize("name", ["fake-gpu/colour", "frame", "absent/frame"])
def test_unknown_blocks_are_refused(results, tmp_path, name):
    path = tmp_path / "README.md"
    path.write_text(f"<!-- bench:begin {name} -->\n<!-- bench:end {name} -->\n")
    with pytest.raises(InputError):
        readme.update(path, results=results)


def test_a_lonely_marker_is_refused(results, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("<!-- bench:begin fake-gpu/frame -->\n")
    with pytest.raises(InputError, match="without its partner"):
        readme.update(path, results=results)


@pytest.mark.parametrize("name", list(readme.TABLES))
def test_every_table_renders(results, name):
    assert "|" in readme.render(f"fake-gpu/{name}", results)


def test_the_projects_readme_agrees_with_its_records():
    assert readme.update(write=False) == []


def test_the_projects_records_load():
    for path in records.RESULTS.glob("*/records.json"):
        assert records.load(path).measurements
