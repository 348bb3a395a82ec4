"""The pickle reader against honest pickles of every protocol, and against hostile ones."""

from __future__ import annotations

import builtins
import collections
import contextlib
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lpkernels.animate import _unpickle
from lpkernels.errors import InputError

PLAIN = {"a": [None, True, False, 1, -300, 2**70, 2.5, "é", (), (1,), (1, 2), (1, (2, 3), 4), (1, 2, 3, 4), {"b": {}}]}
ARRAYS = [
    np.arange(6, dtype="<f4").reshape(1, 2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(3, dtype=">i2"),
    np.array([True, False]),
    np.array(7, dtype="u8"),
    np.zeros((0, 3), dtype="f2"),
    np.arange(10.0)[::2],
]
SMALL = pickle.dumps({"R": np.arange(3.0), "n": 1, "t": [(1, 2), "x"]})


class Call:
    """Pickles as a call of ``function(*arguments)``, with an optional state to set on the result."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data(protocol: int) -> None:
    assert _unpickle.loads(pickle.dumps(PLAIN, protocol)) == PLAIN


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype.str}{array.shape}")
def test_arrays(array: np.ndarray, protocol: int) -> None:
    came = _unpickle.loads(pickle.dumps([array, array], protocol))
    assert came[0] is came[1]
    assert came[0].dtype == array.dtype
    assert type(came[0]) is np.ndarray
    np.testing.assert_array_equal(came[0], array)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_bytes_scalars_and_dtypes(protocol: int) -> None:
    value = {"b": b"\0x", "s": np.float32(0.1), "i": np.int64(-3), "d": np.dtype(">f8")}
    came = _unpickle.loads(pickle.dumps(value, protocol))
    assert came == value
    assert isinstance(came["s"], np.float32)


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_names_before_and_after_numpy_2(core: bytes) -> None:
    own = b"numpy._core" if b"numpy._core" in pickle.dumps(ARRAYS[0], 3) else b"numpy.core"
    content = pickle.dumps([ARRAYS[0], np.float32(2)], 3).replace(own, core)
    array, scalar = _unpickle.loads(content)
    np.testing.assert_array_equal(array, ARRAYS[0])
    assert scalar == 2


def test_every_truncation_is_an_error() -> None:
    assert _unpickle.loads(SMALL)["n"] == 1
    for length in range(len(SMALL)):
        with pytest.raises(InputError):
            _unpickle.loads(SMALL[:length])


@given(st.binary(max_size=60))
def test_noise(noise: bytes) -> None:
    _loads_or_refuses(noise)
    _loads_or_refuses(b"\x80\x04" + noise + b".")


@given(position=st.integers(0, len(SMALL) - 1), byte=st.integers(0, 255), also=st.integers(0, len(SMALL) - 1))
def test_damaged_bytes(position: int, byte: int, also: int) -> None:
    damaged = bytearray(SMALL)
    damaged[position] = byte
    damaged[also] ^= 0xFF
    _loads_or_refuses(bytes(damaged))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("name", "function", "arguments"),
    [
        ("posix.system|nt.system", os.system, ("echo ran > {marker}",)),
        ("eval", builtins.eval, ("open({marker!r}, 'w')",)),
        ("exec", builtins.exec, ("open({marker!r}, 'w')",)),
        (
            "(subprocess|commands).Popen",
            subprocess.Popen,
            ("echo ran > {marker}", -1, None, None, None, None, None, True, True),
        ),
        ("getattr", builtins.getattr, ("{marker}", "upper")),
        ("open", open, ("{marker}", "w")),
    ],
)
def test_calls_are_refused_by_name(name: str, function: Any, arguments: tuple, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    filled = [part.format(marker=str(marker)) if isinstance(part, str) else part for part in arguments]
    hostile = pickle.dumps({"n_frames": 1, "motion": [Call(function, *filled)]}, protocol)
    with pytest.raises(InputError, match=f"the pickle asks for .*({name}): refused"):
        _unpickle.loads(hostile)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (collections.OrderedDict(a=1), r"collections\.OrderedDict"),
        (Path("x"), "Path"),
        (torch.zeros(2), r"torch\._utils\._rebuild_tensor"),
        ({1, 2}, "EMPTY_SET"),
        ({(1, 2): 3}, "text as dict keys, got tuple"),
        ({1: 2}, "text as dict keys, got int"),
        (np.array([1, "a", None], dtype=object), "numeric arrays, got dtype O8"),
        (np.array(["a"]), "numeric arrays, got dtype U1"),
        (np.zeros(1, dtype="c8"), "numeric arrays, got dtype c8"),
        (np.zeros(1, dtype="f4,i4"), "numeric arrays, got dtype V8"),
        (np.ma.masked_array([1.0]), r"numpy\.ma"),
        (np.zeros(1).view(np.recarray), r"recarray|numeric arrays"),
        (np.dtype, "holds a class or function: refused"),
        ((1, np.ndarray), "holds a class or function: refused"),
        ({"a": ((np.ndarray,),)}, "holds a class or function: refused"),
        (Call(np.dtype, "O"), "numeric arrays, got dtype O"),
        (Call(np.dtype, "f4", state=(3, "<", ("a",), {"a": 1}, None, -1, -1, 0)), "structured dtype"),
        (Call(np.ndarray, (2,), "f4"), "calls ndarray: refused"),
        (complex(1, 2), "complex"),
        (range(3), "range"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_other_objects_are_refused(content: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        _unpickle.loads(pickle.dumps([content], 4))


@pytest.mark.parametrize(
    "content",
    [
        b"(S'echo'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nX\x01\0\0\0aos.",  # GLOBAL, then OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93)\x81.",  # STACK_GLOBAL, NEWOBJ
        b"\x80\x02\x82\x01.",  # EXT1
        b"Pos.system\n.",  # PERSID
        b"\x80\x05\x97.",  # NEXT_BUFFER
        b"cnumpy\ndtype\n)\x81.",  # NEWOBJ of a known name
        b"cnumpy\ndtype\n}X\x08\0\0\0__call__Nsb.",  # BUILD on a known name
        b"]}X\x01\0\0\0aNsb.",  # BUILD on a list
        b"}]R.",  # REDUCE of a dict
        b"\x80\x04]\x8c\x01a\x93.",  # STACK_GLOBAL of a list
        b"cos\x1b[2J\nsystem\n.",  # control characters in a name
    ],
)
def test_every_way_to_call_is_refused(content: bytes) -> None:
    with pytest.raises(InputError) as caught:
        _unpickle.loads(content)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"N",
        b"NN.",
        b"(.",
        b"(0.",
        b"h\x05.",  # a memo entry that was never put
        b"NNa.",  # APPEND to None
        b"N(NNu.",  # SETITEMS on None
        b"}(X\x01\0\0\0au.",  # a key without a value
        b"cnumpy\ndtype\n(X\x02\0\0\0f4I00\nI01\ntR.",  # a dtype that is never finished
        b"](cnumpy\ndtype\n(X\x02\0\0\0f4I00\nI01\ntRe.",
        b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".",  # a terabyte announced
        b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b".",
        b"I" + b"9" * 100_000 + b"\n.",
    ],
)
def test_damaged_pickles(content: bytes) -> None:
    with pytest.raises(InputError, match=r"the pickle is damaged or truncated|sets the state|calls"):
        _unpickle.loads(content)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((2**40,), 8), ((2**20, 2**20), 8), ((-1,), 4), ((3,), 8), ((1,) * 9, 4), ((True,), 4), ([2], 8)],
)
def test_array_sizes_are_checked_before_memory_is_taken(shape: Any, size: int) -> None:
    function, arguments, (version, _, dtype, fortran, _) = np.zeros(1, "f4").__reduce__()
    hostile = Call(function, *arguments, state=(version, shape, dtype, fortran, b"\0" * size))
    with pytest.raises(InputError, match="array"):
        _unpickle.loads(pickle.dumps(hostile))


def test_array_bytes_must_be_bytes() -> None:
    function, arguments, (version, _, dtype, fortran, _) = np.zeros(1, "f4").__reduce__()
    hostile = Call(function, *arguments, state=(version, (1,), dtype, fortran, [1.0]))
    with pytest.raises(InputError, match="numeric arrays as bytes, got list"):
        _unpickle.loads(pickle.dumps(hostile))


def test_huge_memo_index_takes_no_memory() -> None:
    assert _unpickle.loads(b"Nr\xff\xff\xff\xff.") is None


def test_list_in_itself_and_deep_nesting_end() -> None:
    itself: list[Any] = []
    itself.append(itself)
    came = _unpickle.loads(pickle.dumps(itself))
    assert came[0] is came
    assert type(_unpickle.loads(b"]" * 50_000 + b"a" * 49_999 + b".")) is list


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_unpickle, "MAX_OPERATIONS", 10)
    with pytest.raises(InputError, match="at most 10 operations"):
        _unpickle.loads(b"]" * 11)
    monkeypatch.setattr(_unpickle, "MAX_BYTES", 5)
    with pytest.raises(InputError, match="at most 5 bytes, got 6"):
        _unpickle.loads(b"]]]]]]")


def _loads_or_refuses(content: bytes) -> None:
    with contextlib.suppress(InputError):
        _unpickle.loads(content)
