"""What a run works with: device, threads, how its processes share a training, and which trackers get its figures."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

from clinkd import distributed
from clinkd.config import RunConfig
from clinkd.model.quantized import demand_bitsandbytes
from clinkd.records import BadInput
from clinkd.settings import override


def share_rows(config: RunConfig, processes: int) -> tuple[RunConfig, list[str]]:
    """The config with the rows and micro-batches of each training such that so many processes share them evenly, and a
    line for each change. Other rows are other steps; `accumulate` changes only rounding."""
    changes: dict[tuple[int, int, int, int], list[str]] = {}
    settings: list[str] = []
    for name, fit in config.fits().items():
        shared = fit.shared_by(processes)
        if shared != fit:
            changes.setdefault((fit.rows, fit.accumulate, shared.rows, shared.accumulate), []).append(name)
            settings += [f"{name}.rows={shared.rows}", f"{name}.accumulate={shared.accumulate}"]
    lines = [
        f"{processes} processes: rows={rows}, accumulate={accumulate} of {', '.join(names)} become "
        f"rows={new_rows}{'' if new_rows == rows else ' (other steps)'}, accumulate={new_accumulate}"
        for (rows, accumulate, new_rows, new_accumulate), names in changes.items()
    ]
    return override(config, settings), lines


@dataclass(frozen=True)
class Machine:
    """The knobs of the same names."""

    device: str
    threads: int
    shard: bool = False
    trackers: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: RunConfig) -> Machine:
        return cls(config.device, config.threads, config.shard, config.trackers)

    @staticmethod
    def demand(config: RunConfig) -> None:
        """Raises BadInput, naming the knob, if the package of a tracker, an optimizer or four bits is not installed."""
        for tracker in config.trackers:
            if importlib.util.find_spec(tracker) is None:
                raise BadInput(f"trackers={tracker}: not installed; pip install {tracker}, or set trackers=[]")
        eight = config.find_fit(optimizer="adamw8bit")
        if eight:
            demand_bitsandbytes(f"{eight}.optimizer=adamw8bit", "adamw")
        if config.model.quantize == "nf4":
            demand_bitsandbytes("model.quantize=nf4", "none")

    def ready(self) -> str:
        """Set torch's threads, and return the name of this process's device: "cpu", "cuda:1".

        Raises BadInput if the device is missing, or another way to shard was chosen.
        """
        import torch

        rank, processes = distributed.local_rank()
        torch.set_num_threads(self.threads or max(1, len(os.sched_getaffinity(0)) // processes))
        if os.environ.get("ACCELERATE_USE_FSDP") == "true":
            raise BadInput("accelerate launch --use_fsdp: start the processes without it, and set shard=true")
        has_gpu = torch.cuda.is_available()
        if self.device == "cuda" and not has_gpu:
            raise BadInput("device=cuda: torch sees no GPU here; set device=auto")
        if self.device == "cpu" or not has_gpu:
            return "cpu"
        if rank >= torch.cuda.device_count():
            raise BadInput(f"{processes} processes on {torch.cuda.device_count()} GPUs: start one a GPU")
        torch.cuda.set_device(rank)
        return f"cuda:{rank}"
