"""Fuzzes the readers of traces and schedules, guided by coverage.

    pip install atheris==3.0.0
    python tests/fuzz/readers.py -max_total_time=60

A reader takes a file, or raises a ValueError of one line that names the file; anything else stops the
run and leaves the input in the current directory. It needs no other option; libFuzzer's all work.
`tests/cluster/test_fuzz.py` tries the same readers with Hypothesis.
"""

import io
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["asgd", "csv", "json", "numpy", "zipfile"]):
        import asgd.cluster  # Now, as only first imports are instrumented.
import zipfile  # noqa: E402

from asgd.cluster import Trace, averaging, averaging_schedule, graphs, schedules  # noqa: E402

GRAPH = graphs.two_cliques(6, bridge_delay=2)
CSV = b"worker,read_version,applied,finish_time\n0,0,true,1.5\n1,0,0,2e0\n"
DELAYS = b"round,agent,neighbor,delay\n0,2,3,1\n1,3,2,2\n"
READERS = {
    # kind: what reads a file of it, and where a good one comes from.
    "trace": (Trace.load, Trace([0, 1, 0], [0, 0, 1], metadata={"protocol": {"protocol": "ssp"}}).save),
    "gossip": (schedules.GossipSchedule.load,
               schedules.random_matchings(schedules.constant(GRAPH), 3, 0).save),
    "averaging": (averaging_schedule.AveragingSchedule.load, averaging.cyclic(2, 4, 2).save),
    "csv": (Trace.from_csv, lambda path: path.write_bytes(CSV)),
    "delays": (lambda path: schedules.from_csv(GRAPH, path, 3), lambda path: path.write_bytes(DELAYS)),
}


def good_file(kind: str, folder: pathlib.Path) -> bytes:
    """Returns the bytes of a file that the reader takes."""
    READERS[kind][1](folder / "good")
    return (folder / "good").read_bytes()


def check(kind: str, content: bytes, folder: pathlib.Path) -> bool:
    """Returns whether the reader takes such a file; fails if it raises anything but one clear line."""
    path = folder / "tried"
    path.write_bytes(content)
    try:
        READERS[kind][0](path)
        return True
    except ValueError as error:
        message = str(error)
        assert str(path) in message and "\n" not in message and len(message) < 1000, message
        return False


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Returns an archive of those files, with checksums that are right."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def unzipped(content: bytes) -> dict[str, bytes]:
    """Returns an archive's files."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        good = {kind: good_file(kind, folder) for kind in READERS}

        def once(data):
            given = atheris.FuzzedDataProvider(data)
            kind = given.PickValueInList(list(READERS))
            whole = good[kind]
            if kind in ("csv", "delays") or given.ConsumeProbability() < 0.3:
                place = given.ConsumeIntInRange(0, len(whole))
                cut = given.ConsumeIntInRange(0, 64)
                check(kind, whole[:place] + given.ConsumeBytes(1 << 16) + whole[place + cut:], folder)
                return
            # Checksums refuse most changes of the archive, so change what it holds.
            members = unzipped(whole)
            for _ in range(given.ConsumeIntInRange(1, 3)):
                name = given.PickValueInList(sorted(members))
                old = members[name]
                place = given.ConsumeIntInRange(0, len(old))
                cut = given.ConsumeIntInRange(0, 16)
                members[name] = old[:place] + given.ConsumeBytes(
                    given.ConsumeIntInRange(0, 64)) + old[place + cut:]
            check(kind, zipped(members), folder)

        atheris.Setup(sys.argv, once)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
