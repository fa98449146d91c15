"""Work of the LLM -> throughput of a run, compared with the limits of the hardware (a roofline model)."""

from __future__ import annotations

from vidqa.common.devices import is_out_of_memory
from vidqa.generate.roofline import decode_bytes, measure, prefill_operations
from vidqa.generate.running_batch import EngineStats
from vidqa.pipeline.monitor.throughput import ThroughputMeter
from vidqa.pipeline.run.loaded_model import LoadedModel

#: Shorter runs are not worth the half second that measuring the hardware takes.
_MIN_BUSY_S = 5.0


def add_engine_stats(meter: ThroughputMeter, model: LoadedModel, stats: EngineStats) -> None:
    """Add the work of an engine to the throughput of a run.

    Args:
        meter: of the run.
        model: of the engine.
        stats: of the engine.
    """
    meter.prefill.add(stats.prefill_tokens, stats.prefill_s)
    meter.step.add(stats.decode_tokens, stats.decode_s)
    meter.n_answers += stats.answers
    meter.prefill_operations += prefill_operations(model.llava, stats.prefill_tokens)
    meter.step_bytes += decode_bytes(model.llava, stats)


def measure_hardware(meter: ThroughputMeter, model: LoadedModel, *, always: bool = False) -> None:
    """Measure the speed of the LLM's device, if the LLM was used and the run was long enough.

    Nothing is measured if the device is out of memory: the run itself has succeeded.

    Args:
        meter: receives the speed.
        model: whose LLM was used.
        always: measure after short runs, too.
    """
    busy_s = sum(stage.busy_s for stage in meter.stages.values())
    if meter.step.n and (always or busy_s > _MIN_BUSY_S):
        try:
            found = measure(model.llava.device, model.llava.dtype)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return
        meter.set_hardware_speed(found.matmul_flop_per_s, found.copy_bytes_per_s)
