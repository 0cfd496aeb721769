"""The monitor inside transformers' and TRL's trainers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from prudent.files import dumps, write_atomic

if TYPE_CHECKING:
    from prudent.policies.monitoring.monitor import Monitor


class MonitorCallback(TrainerCallback):
    """Takes the KL from the trainer's log, says the monitor's line beside it, and stops at its alarm.

    What each process's monitor has seen is kept in every checkpoint, and a resumed training goes on from there.
    """

    def __init__(self, monitor: Monitor, say: Callable[[str], None] | None) -> None:
        self.monitor, self.say = monitor, say

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Replay what had been seen up to the checkpoint that the training goes on from."""
        if state.global_step == 0 or self.monitor.history:
            return
        path = _kept(args, state)
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            for metrics, labels in zip(found["history"], found["labels"], strict=True):
                self.monitor.record(metrics, labels)
        elif self.say is not None and state.is_world_process_zero:
            self.say(f"monitor: {path} is missing, so it begins anew at step {state.global_step}")

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Keep what has been seen in the checkpoint just written."""
        write_atomic(_kept(args, state), dumps({"history": self.monitor.history, "labels": self.monitor.labels}))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **others: Any) -> None:
        """Add the trainer's KL to the monitor's last row, and say its line."""
        if logs and "kl" in logs and self.monitor.history:
            self.monitor.history[-1]["kl"] = float(logs["kl"])
        if self.say is not None and self.monitor.history and state.is_world_process_zero:
            self.say(self.monitor.line())

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> Any:
        """Stop and save on every process once the monitor of any of them has raised an alarm."""
        if self.monitor.alarmed_anywhere():
            control.should_training_stop = control.should_save = True
            if self.say is not None and state.is_world_process_zero and self.monitor.alarm is not None:
                self.say(self.monitor.line())
        return control


def _kept(args: Any, state: Any) -> Path:
    """Where this process's monitor is kept in the checkpoint of the present step."""
    folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    return folder / f"prudent-monitor-{args.process_index}.json"
