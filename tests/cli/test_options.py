"""Shared options: weights, device and precision."""

from __future__ import annotations

import argparse

import pytest
import torch

from lpkernels.cli import options
from lpkernels.errors import InputError
from lpkernels.fused.live_portrait import FusedLivePortrait
from lpkernels.models.live_portrait import LivePortrait


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    options.add_model_options(parser)
    return parser.parse_args(argv)


def test_no_weights_says_how_to_get_them():
    with pytest.raises(InputError, match=r"KwaiVGI/LivePortrait.*--random-weights"):
        options.load_model(parse())


def test_config_belongs_to_random_weights():
    with pytest.raises(InputError, match="--config: only with --random-weights"):
        options.load_model(parse("--weights", "x", "--config", "tiny"))


def test_a_weights_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        options.load_model(parse("--weights", str(tmp_path / "nowhere"), "--device", "cpu"))


def test_an_empty_weights_folder(tmp_path):
    with pytest.raises(InputError, match="appearance_feature_extractor"):
        options.load_model(parse("--weights", str(tmp_path), "--device", "cpu"))


def test_random_weights_follow_the_seed():
    models = [
        options.load_model(parse("--random-weights", seed, "--config", "tiny", "--device", "cpu"))
        for seed in ("1", "1", "2")
    ]
    first, same, other = (next(model.motion_extractor.parameters()) for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert models[0].dtype == torch.float32


@pytest.mark.parametrize("precision", options.PRECISIONS)
def test_precision_is_the_models_compute_dtype(precision):
    argv = ("--random-weights", "0", "--config", "tiny", "--device", "cpu", "--precision", precision)
    assert options.load_model(parse(*argv)).dtype == getattr(torch, options.PRECISIONS[precision])


@pytest.mark.parametrize(("device", "precision", "engine"), [("cpu", "fp32", "published"), ("cuda", "fp16", "fused")])
def test_defaults_follow_the_device(device, precision, engine):
    assert options.choose_precision(None, torch.device(device)) == precision
    assert options.choose_engine(None, torch.device(device)) == engine
    assert options.choose_engine("published", torch.device(device)) == "published"


def test_the_engine_is_the_kind_of_networks():
    argv = ("--random-weights", "0", "--config", "tiny", "--device", "cpu")
    assert isinstance(options.load_model(parse(*argv)), LivePortrait)
    fused = options.load_model(parse(*argv, "--engine", "fused", "--precision", "bf16"))
    assert isinstance(fused, FusedLivePortrait)
    assert fused.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["tpu", "", "cuda:x", "mps", "cpu:0:1"])
def test_an_unknown_device(name):
    with pytest.raises(InputError, match="expected cpu, cuda or cuda:N"):
        options.choose_device(name)


def test_the_gpu_is_the_default_where_there_is_one(monkeypatch):
    for there, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert options.choose_device(None) == torch.device(device)
    assert options.choose_device("cuda:1") == torch.device("cuda:1")


def test_cuda_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"device cuda: .*use cpu"):
        options.load_model(parse("--random-weights", "0", "--config", "tiny", "--device", "cuda"))


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,4,5", "a,b,c,d", "1.5,2,3,4", "", ",,,"])
def test_a_malformed_box(text):
    with pytest.raises(argparse.ArgumentTypeError, match="x,y,w,h"):
        options.numbers(4, int, "x,y,w,h")(text)


def test_a_box():
    assert options.numbers(4, int, "x,y,w,h")("10,-2, 30,40") == (10, -2, 30, 40)


@pytest.mark.parametrize("text", ["-1", "1.5", "x", str(2**32), "٣x"])
def test_a_seed_out_of_range(text):
    with pytest.raises(argparse.ArgumentTypeError, match="whole number"):
        options.seed(text)
