"""The reader of pickles: plain data of every protocol is read, nothing is ever called, and no size is believed."""

import os
import pickle
import re
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpexp.data.pickles import Array, RefusedPickleError, loads

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.binary() | st.integers(), inner) | st.lists(inner).map(tuple)
    ),
    max_leaves=20,
)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(deadline=None)
@given(value=PLAIN)
def test_plain_data_is_what_pickle_reads(value, protocol):
    assert loads(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">i4", "<i8", ">u8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_arrays_of_integers(protocol, dtype, order, core):
    array = np.arange(24, dtype=dtype).reshape((2, 3, 4), order=order)
    content = pickle.dumps({"data": array, "labels": [1, 2, 3], "names": [b"a", "b"]}, protocol)
    found = loads(content.replace(b"numpy._core", core.encode()) if protocol < 4 else content)
    assert isinstance(found["data"], Array)
    assert found["data"].values.dtype == array.dtype
    assert np.array_equal(found["data"].values, array)
    assert (found["labels"], found["names"]) == ([1, 2, 3], [b"a", "b"])


def test_a_pickle_of_python_2():
    """As its cPickle wrote CIFAR-10: texts are bytes, an array's numbers too; as pickle reads with encoding=bytes."""
    content = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85q\x05"
        b"U\x01bq\x06\x87q\x07Rq\x08(K\x01K\x02K\x03\x86q\x09cnumpy\ndtype\nq\x0aU\x02u1q\x0bK\x00K\x01\x87q\x0cRq\x0d("
        b"K\x03U\x01|q\x0eNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0fb\x89T\x06\x00\x00\x00\x01\x02\xff\x04\x05\x06"
        b"q\x10tq\x11bU\x06labelsq\x12]q\x13(K\x07K\x09eu."
    )
    found, other = loads(content), pickle.loads(content, encoding="bytes")
    assert found[b"labels"] == other[b"labels"] == [7, 9]
    assert np.array_equal(found[b"data"].values, other[b"data"])
    assert found[b"data"].values.tolist() == [[1, 2, 255], [4, 5, 6]]


class Called:
    """Pickles as a call of a function; what is called leaves a mark."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Built:
    """Pickles as an object whose state is set."""


def mark():
    os.environ["BPEXP_PICKLE_RAN"] = "1"


def hidden(inner):
    return {"data": np.zeros(3, np.uint8), "labels": [[{"a": [inner]}]]}


MALICIOUS = {
    "os.system": Called(os.system, "touch ran"),
    "eval": Called(eval, "__import__('os').environ.__setitem__('BPEXP_PICKLE_RAN', '1')"),
    "builtins by a chain": Called(getattr, Called(__import__, "os"), "environ"),
    "function of this module": Called(mark),
    "nested": hidden(Called(os.system, "touch ran")),
    "nested in a call": Called(list, [Called(mark)]),
    "object": Built(),
    "class": Built,
    "function": os.system,
    "float": 1.5,
    "set": {1, 2},
    "frozenset": frozenset([1]),
    "complex": 1j,
    "array of objects": np.array([Called(mark), None], dtype=object),
    "array of floats": np.zeros(3),
    "array of texts": np.array(["text"]),
    "array with fields": np.zeros(2, [("a", "u1")]),
    "numpy scalar": np.int64(3),
    "dtype": np.dtype("O"),
    "masked array": np.ma.masked_array([1, 2], [0, 1]),
    "subclass of an array": np.rec.array([(1, 2)]),
    "tuple as a key": {(1, 2): 3},
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", MALICIOUS)
def test_anything_else_is_refused_and_nothing_runs(name, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps(MALICIOUS[name], protocol)
    modules = set(sys.modules)
    if name == "dtype":
        assert type(loads(content)).__module__ == "bpexp.data.pickles", "the word for it, which no reader takes"
    else:
        with pytest.raises(RefusedPickleError):
            loads(content)
    assert not os.environ.get("BPEXP_PICKLE_RAN")
    assert list(tmp_path.iterdir()) == []
    assert set(sys.modules) == modules


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
HAND_MADE = [
    (b"cposix\nsystem\n(S'touch ran'\ntR.", "holds posix.system"),
    (b"(S'touch ran'\nios\nsystem\n.", "has the opcode INST"),
    (b"(cos\nsystem\nS'touch ran'\no.", "holds os.system"),
    (b"\x80\x02cnumpy\nndarray\nK\x05\x85\x81.", "has the opcode NEWOBJ"),
    (b"\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R.", "calls numpy.ndarray as numpy does not"),
    (
        RECONSTRUCT + b"(cnumpy\nndarray\n(I1000000000000\ntS'b'\ntR.",
        "calls numpy.core.multiarray._reconstruct as numpy",
    ),
    (RECONSTRUCT + b"(cnumpy\ndtype\n(I0\ntS'b'\ntR.", "calls numpy.core.multiarray._reconstruct as numpy does not"),
    (b"c_codecs\nencode\n(Vtext\nVrot13\ntR.", "calls _codecs.encode as numpy does not"),
    (b"c_codecs\ndecode\n.", "holds _codecs.decode"),
    (b"cnumpy.core.multiarray\nscalar\n.", "holds numpy.core.multiarray.scalar"),
    (b"cnumpy\nload\n.", "holds numpy.load"),
    (b"cbuiltins\n" + b"x" * 10000 + b"\n.", "holds builtins.xxxx"),
    (b"Pname\n.", "has the opcode PERSID"),
    (b"\x80\x02\x82\x01.", "has the opcode EXT1"),
    (b"\x80\x05\x97.", "has the opcode NEXT_BUFFER"),
    (b"(lp0\nh\x01a.", "is not a whole pickle"),
    (b"]}s.", "is not a whole pickle"),
    (b"(((.", "is not a whole pickle"),
    (b"(K\x01K\x02.", "is not a whole pickle"),
    (b"}(K\x01u.", "is not a whole pickle"),
    (b"K\x01(K\x02.", "is not a pickle to its end"),
    (b"K\x01.more", "is not a pickle to its end"),
    (b"K\x01", "is not a whole pickle"),
    (b"", "is not a whole pickle"),
    (b"\xff\x00 nothing of the kind", "is not a whole pickle"),
    (b"K\x01K\x02b.", "holds an array that is not of integers"),
]


@pytest.mark.parametrize(("content", "problem"), HAND_MADE, ids=[f"{n}-{row[1]}" for n, row in enumerate(HAND_MADE)])
def test_hand_made_pickles_are_refused(content, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RefusedPickleError, match=f"^{re.escape(problem)}"):
        loads(content)
    assert list(tmp_path.iterdir()) == []


def doubling(steps):
    """A tuple of two of the one before, `steps` times: a few bytes each, 2**steps leaves."""
    return b"\x80\x02)" + b"".join(b"q%ch%c\x86" % (step, step) for step in range(steps))


def array_state(shape, raw):
    """The state of an array, from its mark to BUILD, with the shape and the bytes that are given."""
    dtype = b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR"
    return RECONSTRUCT + b"(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n" + shape + dtype + b"I0\n" + raw + b"tb."


BOMBS = {
    "memo far away": b"K\x01r\xff\xff\xff\x7f.",
    "frame without end": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7fK\x01.",
    "bytes without end": b"\x80\x04\x8e" + b"\xff" * 6 + b"\x00\x00.",
    "bytearray without end": b"\x80\x05\x96" + b"\xff" * 6 + b"\x00\x00.",
    "text without end": b"\x80\x04\x8d" + b"\xff" * 6 + b"\x00\x00.",
    "string without end": b"T\xff\xff\xff\x7f.",
    "number without end": b"\x8b\xff\xff\xff\x7f.",
    "digits": b"L" + b"9" * 100_000 + b"L\n.",
    "shape without bytes": array_state(b"(I1000000000\nI1000000000\nt", b"S'abc'\n"),
    "shape below zero": array_state(b"(I-3\nI-1\nt", b"S'abc'\n"),
    "shape of texts": array_state(b"(S'3'\nt", b"S'abc'\n"),
    "key of tuples in tuples": b"\x80\x02}" + doubling(100)[2:] + b"K\x01s.",
    "equal tuples in tuples": b"\x80\x02" + doubling(100)[2:] + doubling(100)[2:] + b"R.",
    "deep lists": b"(" * 100_000 + b"l" * 100_000 + b".",
    "texts encoded again and again": b"\x80\x02X\x00\x00\x10\x00"
    + b"a" * 2**20
    + b"q\x000]("
    + b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R" * 1000
    + b"e.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_no_size_is_believed(name):
    """A pickle of a few bytes does not take the memory that it claims, nor for ever."""
    content = BOMBS[name]
    tracemalloc.start()
    try:
        loads(content)
    except RefusedPickleError:
        pass
    else:
        assert name in ("memo far away", "frame without end", "deep lists"), "what is whole, though odd, is read"
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 100 * len(content) + 2**20


WHOLE = [pickle.dumps(hidden([True, None, -1, 2**70, b"bytes", "text"]), protocol) for protocol in PROTOCOLS]


@settings(deadline=None, max_examples=300)
@given(data=st.data(), which=st.sampled_from(range(len(WHOLE))))
def test_a_damaged_pickle_is_read_or_refused_in_one_line(data, which):
    content, said = bytearray(WHOLE[which]), ""
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        loads(bytes(content[: data.draw(st.integers(0, len(content)))]))
    except RefusedPickleError as error:
        said = str(error)
    assert said.isprintable()
    assert len(said) < 120


def test_a_name_of_two_lines_is_shown_in_one():
    with pytest.raises(RefusedPickleError, match=r"^holds 'a\\nb.c'$"):
        loads(b"\x80\x04\x8c\x03a\nb\x8c\x01c\x93.")
