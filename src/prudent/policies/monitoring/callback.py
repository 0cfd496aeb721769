"""The monitor inside transformers' and TRL's trainers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from prudent.policies.monitoring.monitor import Monitor


class MonitorCallback(TrainerCallback):
    """Takes the KL from the trainer's log, says the monitor's line beside it, and stops at its alarm."""

    def __init__(self, monitor: Monitor, say: Callable[[str], None] | None) -> None:
        self.monitor, self.say = monitor, say

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
