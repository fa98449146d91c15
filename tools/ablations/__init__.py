"""The parts of `tools/run_ablations.py`.

plan.py      sizes, arms, and the recipe of each run
starts.py    small world, picture encoder that knows no language, bundles that the runs begin with
table.py     scores of all runs -> the table with its spread
"""
