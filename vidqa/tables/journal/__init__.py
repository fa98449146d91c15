"""Crash-safe changes of a table: part files next to it, merged into it when the run ends.

row_keys.py    what identifies a row
row_index.py   which rows exist (SQLite, in memory)
change_log.py  changes as data frames, and replaying them on an index
parts.py       the part files, and atomic publication of new table files
merge.py       an index applied to stored rows
storage.py     table files and part files together: open, append, merge
"""
