"""The parts that report and README share: each level's table, the environment, what did not repeat."""

from __future__ import annotations

from benchmarks.records import Records
from benchmarks.tables import (
    Table,
    against,
    columns,
    error_text,
    memory_text,
    milliseconds,
    note,
    percent,
    ratios,
    timings,
)
from benchmarks.warm_start import PARTS
from benchmarks.work import Measurement

# The original's default, and the fastest that its users would reach for.
BASELINES = ("baseline-amp", "compile-reduce-overhead")

TITLES = {
    "frame": "The whole frame",
    "networks": "Networks",
    "ops": "Kernels",
    "techniques": "Techniques, one after the other",
    "throughput": "Throughput against batch",
    "streams": "Concurrent 30 fps streams",
    "job": "Files in, file out",
    "warm-up": "From import to the first fast frame, in a fresh process",
    "programs": "The original program, accelerated and restored",
    "endurance": "Long runs",
}
REPEATS_WITHIN = 0.03
FROM_MS = 0.1


def of_level(records: Records, level: str) -> Table:
    """The table that suits a level."""
    measurements = records.level(level)
    special = {
        "throughput": throughput,
        "streams": streams,
        "job": job,
        "techniques": techniques,
        "warm-up": warm_up,
        "programs": programs,
        "endurance": endurance,
    }
    return special[level](measurements) if level in special else timings(records, measurements)


def compared(records: Records, level: str) -> Table | None:
    """Ratios to PyTorch's own ways, for the levels whose work they do; every provider that ran, at every batch."""
    if level not in ("frame", "networks"):
        return None
    return against([one for one in records.level(level) if one.status != "skipped"], *BASELINES)


def throughput(measurements: list[Measurement]) -> Table:
    """Frames per second and time of the whole batch."""
    return columns(
        [
            "batch",
            "provider",
            "frames/s",
            "time of the batch",
            "p99",
            *(f"vs {name}" for name in BASELINES),
            "error",
            "peak memory",
        ],
        measurements,
        lambda one: [
            str(one.batch),
            one.provider,
            f"{rate(one):.4g}",
            milliseconds(one.median_ms),
            milliseconds(one.p99_ms),
            *ratios(one, measurements, BASELINES),
            error_text(one),
            memory_text(one, measurements, BASELINES[0]),
        ],
    )


def streams(measurements: list[Measurement]) -> Table:
    """Streams held, with the delay at that number."""
    return columns(
        ["provider", "streams", "p99 delay", "one frame", "error"],
        measurements,
        lambda one: [
            one.provider,
            str(one.extras.get("streams", "")),
            milliseconds(one.extras.get("p99_delay_ms")),
            milliseconds(one.median_ms),
            error_text(one),
        ],
    )


def job(measurements: list[Measurement]) -> Table:
    """Frames per second of the whole job, and what each stage took of a frame."""

    def row(one: Measurement) -> list[str]:
        stages = [one.extras.get(f"{stage}_ms") for stage in ("decode", "animate", "encode")]
        each = [milliseconds(stage / one.frames) if stage is not None else "" for stage in stages]
        once = milliseconds(one.extras.get("warm_up_ms"))
        return [one.provider, one.shape, f"{rate(one):.4g}", *each, once, error_text(one)]

    heading = ["provider", "job", "frames/s", "decode", "animate", "encode", "of it warm-up, once", "error"]
    return columns(heading, measurements, row)


def warm_up(measurements: list[Measurement]) -> Table:
    """The parts of what a program waits for, and the frames after it."""

    def row(one: Measurement) -> list[str]:
        parts = [milliseconds(one.extras.get(f"{part}_ms")) for part in (*PARTS, "warm_frame")]
        return [one.provider, one.shape, milliseconds(one.median_ms), *parts, error_text(one)]

    heading = [part.replace("_", " ") for part in (*PARTS, "warm_frame")]
    return columns(["provider", "process", "in all", *heading, "error"], measurements, row)


def programs(measurements: list[Measurement]) -> Table:
    """Times of a frame in each state of the program, against its first; whether answers are that one's bit for bit."""
    rows = []
    for one in measurements:
        same, ratio = one.extras.get("same_as_original"), one.extras.get("speedup")
        rows.append(
            [
                one.subject,
                one.provider,
                *(milliseconds(time) for time in (one.median_ms, one.p99_ms)),
                f"{ratio:.2f}x" if ratio and one.status == "ok" else "",
                "" if same is None else "yes" if same else "no",
                error_text(one),
                note(one),
            ]
        )
    heading = ["part", "state", "median", "p99", "vs original", "same answers", "error", "note"]
    return Table(heading, rows)


def endurance(measurements: list[Measurement]) -> Table:
    """What a long run did to times, memory (MiB, from before it to its end) and pictures."""
    grown = ("host_mb", "allocated_mb", "reserved_mb", "device_mb")
    rows = []
    for one in measurements:
        facts = one.extras
        parts = [facts.get(part, {}) if one.status == "ok" else {} for part in ("first", "last")]
        counts = [str(facts.get(name, "")) for name in ("frames", "dropped", "differing")]
        times = [milliseconds(part.get(name)) for part in parts for name in ("median_ms", "p99_ms")]
        slower = percent(facts.get("slower_by"), signed=True) if one.status == "ok" else ""
        growth = [_signed(facts.get("growth_mb", {}).get(name)) for name in grown]
        rows.append([one.shape, one.provider, *counts, *times, slower, *growth, error_text(one), note(one)])
    heading = ["run", "provider", "frames", "dropped", "differing", "first median", "first p99", "last median"]
    heading += ["last p99", "slower by", *(f"{name.removesuffix('_mb')} MiB" for name in grown), "error", "note"]
    return Table(heading, rows)


def techniques(measurements: list[Measurement]) -> Table:
    """Each technique against the entry it is added to."""
    times = {one.provider: one.median_ms for one in measurements}
    rows = []
    for one in measurements:
        previous = one.extras.get("added_to")
        before = times.get(previous) if previous else None
        effect = f"{before / one.median_ms:.2f}x" if before and one.median_ms else ""
        rows.append([one.provider, previous or "", milliseconds(one.median_ms), effect, error_text(one), note(one)])
    return Table(["technique", "added to", "frame", "effect", "error", "note"], rows)


def rate(one: Measurement) -> float:
    """Frames per second."""
    return 1e3 * one.frames / one.median_ms if one.median_ms else 0.0


def environment(records: Records) -> Table:
    """One column per run; a fact that no run has is left out."""
    facts = {"config": [run.config for run in records.runs]}
    for run in records.runs:
        for name in run.environment:
            facts.setdefault(name, [str(other.environment.get(name, "")) for other in records.runs])
    heading = ["", *(f"run {index}" for index in range(len(records.runs)))]
    return Table(heading, [[name, *values] for name, values in facts.items()], left=len(heading))


def ceilings(records: Records) -> Table:
    """What each run's copy and matrix products reached."""
    names = list(dict.fromkeys(name for run in records.runs for name in run.ceilings))
    rows = [[name, *(_number(run.ceilings.get(name)) for run in records.runs)] for name in names]
    return Table(["", *(f"run {index}" for index in range(len(records.runs)))], rows, left=1)


def repeatability(records: Records) -> list[str]:
    """Sentences on whether medians above 0.1 ms repeated within 3 %, over runs and within each."""
    good = [one for one in records.measurements if one.median_ms is not None and one.median_ms > FROM_MS]
    repeated = [one for one in good if one.repeats_ms]
    lines = []
    if repeated:
        bad = [(one, spread(one)) for one in repeated if spread(one) > REPEATS_WITHIN]
        lines.append(
            f"{len(repeated)} medians above {FROM_MS} ms were measured in more than one run; "
            f"{len(repeated) - len(bad)} of them lie within {percent(REPEATS_WITHIN)} of each other."
        )
        lines += [f"{_where(one)} did not repeat: medians spread over {far:.1%}." for one, far in bad]
    else:
        lines.append("No median was measured in a second run yet: run again with --append.")
    drifted = [one for one in good if one.drift is not None and abs(one.drift) > REPEATS_WITHIN]
    lines += [f"{_where(one)} drifted by {one.drift:+.1%} while it was timed." for one in drifted]
    return lines


def spread(one: Measurement) -> float:
    """Largest over smallest median of all runs, minus one."""
    medians = [*one.repeats_ms, one.median_ms or 0.0]
    return max(medians) / min(medians) - 1.0


def _where(one: Measurement) -> str:
    batch = f" x{one.batch}" if one.batch != 1 else ""
    return f"{one.level}/{one.subject}{batch} {one.provider}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value or "")
