"""Readers take a file or refuse it in one line that names it, whatever it holds."""

import io
import json
import resource
import tracemalloc
import zipfile

from hypothesis import HealthCheck, given, settings, strategies as st
import numpy as np
import pytest

from asgd.cluster import Trace, averaging_schedule, checks, schedules, storage
from tests.fuzz import readers

FUZZ = settings(derandomize=True, deadline=None, database=None, max_examples=150,
                suppress_health_check=list(HealthCheck))
ARCHIVES = ["trace", "gossip", "averaging"]
TEXTS = ["csv", "delays"]
GOOD = {}  # Of each kind, made once.


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz")
    GOOD.update({kind: readers.good_file(kind, path) for kind in readers.READERS})
    return path


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


@st.composite
def changed(draw, content):
    """Bytes cut, doubled, replaced and put in at some places."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        stop = start + draw(st.integers(0, 30))
        new = draw(st.binary(max_size=20) | st.just(content[start:stop] * 2) | st.just(content[:0]))
        content = content[:start] + new + (b"" if draw(st.booleans()) else content[stop:])
    return content


CELL = st.one_of(
    st.text(max_size=8), st.integers().map(str), st.floats().map(str),
    st.sampled_from(["1e400", "-1e400", "9" * 5000, "99999999999999999999", "-1", "nan", "0x1", "1_0", "\0",
                     "a" * 200_000, '"', '"1', "1\n2", "٣", "\udcff", "true", " 1 "]))


@pytest.mark.parametrize("kind", readers.READERS)
def test_good_files_are_taken(folder, kind):
    assert readers.check(kind, GOOD[kind], folder)


@pytest.mark.parametrize("kind", ARCHIVES)
@FUZZ
@given(data=st.data())
def test_changed_archives(folder, kind, data):
    readers.check(kind, data.draw(changed(GOOD[kind])), folder)


@pytest.mark.parametrize("kind", ARCHIVES)
@FUZZ
@given(data=st.data())
def test_changed_members(folder, kind, data):
    members = readers.unzipped(GOOD[kind])
    name = data.draw(st.sampled_from(sorted(members)))
    # Half of the time the header, a Python literal.
    part = data.draw(st.sampled_from([len(members[name]), 128]))
    members[name] = data.draw(changed(members[name][:part])) + members[name][part:]
    readers.check(kind, readers.zipped(members), folder)


DTYPES = ["?", "i1", "u8", "i8", "f2", "f8", "c16", "U3", "S2", "M8[s]", "m8[s]", "V4", "i4,f4", ">i4", "U0"]
SHAPES = [(), (0,), (1,), (2,), (3,), (6,), (1, 3), (6, 6), (1, 6, 6), (2, 2, 2, 2), (3, 0)]
VALUES = [0, 1, -1, 2, 127, 2**31, 2**63 - 1, 1.5, np.nan, np.inf, 1e308]


@pytest.mark.parametrize("kind", ARCHIVES)
@FUZZ
@given(data=st.data())
def test_other_arrays(folder, kind, data):
    members = readers.unzipped(GOOD[kind])
    for name in data.draw(st.lists(st.sampled_from(sorted(members)), min_size=1, max_size=3)):
        old = np.load(io.BytesIO(members[name]))
        shape = data.draw(st.sampled_from([*SHAPES, old.shape]))
        new = np.zeros(shape, data.draw(st.sampled_from([*DTYPES, old.dtype])))
        if new.dtype.kind in "iuf":
            with np.errstate(all="ignore"):
                new[...] = np.array(data.draw(st.sampled_from(VALUES))).astype(new.dtype)
        members[name] = npy(new)
    readers.check(kind, readers.zipped(members), folder)


@FUZZ
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)))
def test_metadata_of_any_json(folder, value):
    members = readers.unzipped(GOOD["trace"])
    members["metadata.npy"] = npy(np.array(json.dumps(value)))
    taken = readers.check("trace", readers.zipped(members), folder)
    assert not taken or isinstance(value, dict)


@pytest.mark.parametrize("kind", TEXTS)
@FUZZ
@given(data=st.data())
def test_changed_texts(folder, kind, data):
    readers.check(kind, data.draw(changed(GOOD[kind])), folder)


@pytest.mark.parametrize("kind", TEXTS)
@FUZZ
@given(data=st.data())
def test_cells(folder, kind, data):
    names = storage.COLUMNS if kind == "csv" else ["round", "agent", "neighbor", "delay"]
    header = data.draw(st.lists(st.sampled_from(names) | CELL, max_size=5) | st.just(names[:4]))
    rows = [header, *data.draw(st.lists(st.lists(CELL, max_size=5), max_size=4))]
    end = data.draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"]))
    text = end.join(",".join(row) for row in rows)
    readers.check(kind, text.encode("utf-8", "surrogateescape" if "\udcff" in text else "replace"), folder)


@pytest.fixture
def little_memory():
    """Lets an allocation beyond another GiB fail."""
    old = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


def header(shape, dtype="<i8", content=b""):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


def encrypted(members):
    content = bytearray(readers.zipped(members))
    for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        for start in (i for i in range(len(content)) if content.startswith(signature, i)):
            content[start + place] |= 1
    return bytes(content)


@pytest.mark.parametrize("name, member", [
    ("worker", header((10**12,))),  # More than there is.
    ("worker", header((10**30,))),
    ("worker", header((10**12,), "<U0")),
    ("worker", header((-1,))),
    ("worker", header((3,), "|O", b"\x80\x04N.")),
    ("worker", b"\x93NUMPY\x01\x00\xff\x03" + b"(" * 1023),  # Nested deeper than Python parses.
    ("num_workers", npy(np.array(np.inf))),
    ("num_workers", npy(np.array(2.0))),
    ("num_workers", npy(np.array(2**31 - 1))),
    ("num_workers", npy(np.arange(2))),
    ("metadata", npy(np.array("[" * 100_000))),
    ("metadata", npy(np.array('{"a":' * 990 + "1" + "}" * 990))),
    ("metadata", npy(np.array('{"a": NaN}'))),
    ("metadata", npy(np.array("1" * 5000))),
])
def test_archives_that_pretend(folder, little_memory, name, member):
    members = {**readers.unzipped(GOOD["trace"]), f"{name}.npy": member}
    assert not readers.check("trace", readers.zipped(members), folder)


def test_no_memory_for_what_is_not_there(folder):
    members = {**readers.unzipped(GOOD["trace"]), "worker.npy": header((10**7,))}
    tracemalloc.start()
    try:
        assert not readers.check("trace", readers.zipped(members), folder)
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("make", [
    encrypted,
    lambda members: readers.zipped(members, zipfile.ZIP_BZIP2),
    lambda members: readers.zipped(members, zipfile.ZIP_LZMA),
    lambda members: readers.zipped({name: header((10**12,)) for name in members}, zipfile.ZIP_DEFLATED),
])
def test_archives_of_other_kinds(folder, little_memory, make):
    assert not readers.check("trace", make(readers.unzipped(GOOD["trace"])), folder)


def test_compressed_archives_are_taken(folder):
    content = readers.zipped(readers.unzipped(GOOD["trace"]), zipfile.ZIP_DEFLATED)
    assert readers.check("trace", content, folder)


@pytest.mark.parametrize("kind, name, array, message", [
    ("gossip", "adjacency", np.full((6, 6), "a"), "adjacency must hold numbers, not <U1"),
    ("gossip", "mixing", np.zeros((6, 6), "i4,f4"), "mixing must hold numbers"),
    ("gossip", "graph_delays", np.zeros((6, 6), "m8[s]"), "graph_delays|delays must .* numbers"),
    ("gossip", "graph_delays", np.full((2, 2, 2), -1), "delays must be integers, numbers of rounds"),
    ("gossip", "delays", np.zeros((1, 6, 6), "m8[s]"), "delays must be integers, a number of rounds"),
    ("gossip", "partners", np.zeros((3, 6)), "partners must be integers, not float64"),
    ("averaging", "num_workers", np.array(2**31 - 1), "num_workers must be at most 1000000"),
    ("averaging", "num_workers", np.array(np.inf), r"num_workers is float64 \[\], and not one integer"),
    ("averaging", "kind", np.zeros(2), r"kind is float64 \[2\], and not one text"),
    ("averaging", "worker", np.zeros(8, "i4,f4"), "worker must be a vector of int32"),
])
def test_arrays_that_passed_or_raised_something_else(folder, kind, name, array, message):
    members = {**readers.unzipped(GOOD[kind]), f"{name}.npy": npy(array)}
    (folder / "tried").write_bytes(readers.zipped(members))
    with pytest.raises(ValueError, match=f"tried: {message}"):
        readers.READERS[kind][0](folder / "tried")


@pytest.mark.parametrize("kind, text, message", [
    ("csv", "worker,read_version\n99999999999999999999,0\n",
     "worker at row 0 is '9*'; it must be within int32"),
    ("csv", "worker,read_version\n2147483647,0\n", "num_workers must be at most 1000000, not 2147483648"),
    ("csv", f"worker,read_version\n{'a' * 1000},0\n", r"worker at row 0 is 'a{99}\.\.\.; it must be an int"),
    ("csv", "worker,read_version\n" + "1" * 200_000, "is not a CSV file: field larger than field limit"),
    ("delays", "round,agent,neighbor,delay\n0,0,0," + "1" * 200_000, "is not a CSV file: field larger"),
    ("delays", 'round,agent,neighbor,delay\n0,"1\n2",3,4\n', "row 0 is 0,1 2,3,4; it must be four integers"),
    ("delays", b"round,agent,neighbor,delay\n\xff", "is not a CSV file: 'utf-8' codec can't decode"),
])
def test_texts_that_raised_something_else(folder, kind, text, message):
    (folder / "tried").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"tried:? {message}") as caught:
        readers.READERS[kind][0](folder / "tried")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [
    Trace.load, Trace.from_csv, schedules.GossipSchedule.load, averaging_schedule.AveragingSchedule.load,
    lambda path: schedules.from_csv(readers.GRAPH, path, 3)])
@pytest.mark.parametrize("path", ["/dev/zero", "/"])
def test_what_is_no_file_is_not_read(little_memory, read, path):
    with pytest.raises(ValueError, match=f"{path} is not a file"):
        read(path)


def test_show_is_one_short_line():
    for value in ("a\nb" * 100, 10**5000, np.zeros((50, 50)), [None] * 1000, float("nan")):
        assert "\n" not in checks.show(value) and len(checks.show(value)) < 120
