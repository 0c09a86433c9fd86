from storage.run import Run
from storage.store import Store


def write_report(store: Store, run: Run) -> str:
    return str(store.report_path(run.name))
