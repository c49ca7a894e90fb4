"""Really asynchronous runs that write a trace."""

from asgd.recording.log import Log
from asgd.recording.record import record
from asgd.recording.recorder import Recorder, RecordingResult

__all__ = ["Log", "Recorder", "RecordingResult", "record"]
