"""What a run reports while it works and at its end. Imports no stage of the run: everything is passed in as values.

signals.py             Ctrl-C and SIGTERM -> a stop at a moment when nothing is lost
reporter.py            messages, progress bar, and the clock of the stages
event_log.py           one line per event, as text or JSON
throughput.py          work and busy time of each stage
throughput_history.py  throughput of earlier runs, for the time estimate of --dry-run
summary.py             counts of a run -> text, one line, JSON
prometheus.py          counts of a run -> a file for the textfile collector
"""

from importlib import import_module

_EXPORTS = {
    "Reporter": "vidqa.pipeline.monitor.reporter",
    "Summary": "vidqa.pipeline.monitor.summary",
    "ThroughputMeter": "vidqa.pipeline.monitor.throughput",
}
__all__ = ["Reporter", "Summary", "ThroughputMeter"]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
