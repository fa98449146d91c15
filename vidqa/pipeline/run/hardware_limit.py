"""The meter of a run held against what the hardware allows.

Knows the LLM's counts and the meter; does not know how either came about.
"""

from __future__ import annotations

from vidqa.common.devices import is_out_of_memory
from vidqa.generate.roofline import decode_bytes, measure, prefill_operations
from vidqa.generate.running_batch import EngineStats
from vidqa.pipeline.monitor.throughput import ThroughputMeter
from vidqa.pipeline.run.loaded_model import LoadedModel

#: Shorter runs are not worth the half second that measuring takes.
_WORTH_S = 5.0


def add_work(meter: ThroughputMeter, model: LoadedModel, work: EngineStats) -> None:
    """Take over what an engine did."""
    meter.prefill.add(work.prefill_tokens, work.prefill_s)
    meter.step.add(work.decode_tokens, work.decode_s)
    meter.n_answers += work.answers
    meter.prefill_operations += prefill_operations(model.llava, work.prefill_tokens)
    meter.step_bytes += decode_bytes(model.llava, work)


def hold_against_hardware(meter: ThroughputMeter, model: LoadedModel, *, always: bool = False) -> None:
    """Measure the LLM's device, where the LLM was used and the run was long enough to ask.

    A device without room for it is not measured: the run itself has gone well.
    """
    busy_s = sum(stage.busy_s for stage in meter.stages.values())
    if meter.step.n and (always or busy_s > _WORTH_S):
        try:
            found = measure(model.llava.device, model.llava.dtype)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return
        meter.hold_against(found.matrix_per_s, found.copy_bytes_per_s)
