"""Started by torchrun from test_two_processes.py: the same stages in two processes."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import SAMPLES, make_model, make_sample, train_samples

from vidqa.training.distributed import init_process_group, is_first, processes
from vidqa.training.recipe.definition import Stage

STAGE = Stage(kind="instruct", epochs=4, batch_size=4, per_device_batch_size=1, learning_rate=3e-3)
#: One process has only text, the other only videos, and only the connector is trained.
APART = [make_sample(n, None if n % 2 == 0 else f"{n}.mp4", answer) for n, answer in enumerate(("a", "b", "c d", "d"))]
APART_STAGE = Stage(kind="connector", epochs=2, batch_size=2, per_device_batch_size=1, learning_rate=3e-3)


def main(folder: Path) -> None:
    init_process_group("cpu")
    assert processes() == 2
    both = {"mixed": (STAGE, SAMPLES, True), "apart": (APART_STAGE, APART, False)}
    for name, (stage, samples, shuffled) in both.items():
        trained = train_samples(make_model(), folder / name, stage, samples, shuffled=shuffled)
        if is_first():
            (folder / f"{name}.json").write_text(json.dumps(trained.lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
