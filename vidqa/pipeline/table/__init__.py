"""Looking after a table: what its rows stand for, and which of them are no longer needed. No model is loaded.

run_provenance.py   what a run stores about its settings, model and questions
row_address.py      a row by its number or file
reproduce.py        what a row was made with, and the command that reproduces it
table_prune.py      drops rows
table_write.py      merges tables, converts formats
"""

from vidqa.common.lazy_exports import lazy_exports

__all__ = ["convert_table", "merge_tables", "provenance_of_run", "prune_table"]

__getattr__ = lazy_exports(
    __name__,
    {
        "convert_table": "table_write",
        "merge_tables": "table_write",
        "provenance_of_run": "run_provenance",
        "prune_table": "table_prune",
    },
)
