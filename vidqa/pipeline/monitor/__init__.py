"""What a run reports while it works and at its end. Imports no stage of the run: everything is passed in as values.

signals.py             Ctrl-C and SIGTERM -> a stop at a moment when nothing is lost
progress_display.py    progress as a bar or as lines
reporter.py            messages, progress, and the clock of the stages
event_log.py           one line per event, as text or JSON
throughput.py          work and busy time of each stage
throughput_history.py  throughput of earlier runs, for the time estimate of --dry-run
summary.py             counts of a run -> text, one line, JSON
prometheus.py          counts of a run -> a file for the textfile collector
"""

from vidqa.common.lazy_exports import lazy_exports

__all__ = ["Reporter", "Summary", "ThroughputMeter"]

__getattr__ = lazy_exports(__name__, {"Reporter": "reporter", "Summary": "summary", "ThroughputMeter": "throughput"})
