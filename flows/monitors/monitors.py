"""All who are told of a run beside its terminal."""

from dataclasses import dataclass, field

from flows.monitors.notifications import Notifier
from flows.monitors.prefect_artifacts import Artifacts
from flows.monitors.tracking import Tracker


@dataclass
class Monitors:
    """Prefect's UI, people by message, and trackers of metrics."""

    artifacts: Artifacts
    notifier: Notifier
    tracker: Tracker = field(default_factory=Tracker)
