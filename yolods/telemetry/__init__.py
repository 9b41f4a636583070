"""A run's screen, logs and result files: the names that other rooms use."""

from yolods.telemetry.events import STABILITY_FILE
from yolods.telemetry.interface import NullTelemetry, Telemetry
from yolods.telemetry.log import Log, open_log, quiet_dependencies
from yolods.telemetry.plots import Batch, Prediction
from yolods.telemetry.run import RunTelemetry
from yolods.telemetry.tensorboard import model_table

__all__ = [
    "STABILITY_FILE",
    "Batch",
    "Log",
    "NullTelemetry",
    "Prediction",
    "RunTelemetry",
    "Telemetry",
    "model_table",
    "open_log",
    "quiet_dependencies",
]
