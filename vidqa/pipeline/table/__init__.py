"""Looking after a table: what its rows stand for, and which of them are no longer needed. No model is loaded.

run_provenance.py   what a run stores about its settings, model and questions
"""

from vidqa.common.lazy_exports import lazy_exports

__all__ = ["provenance_of_run"]

__getattr__ = lazy_exports(__name__, {"provenance_of_run": "run_provenance"})
