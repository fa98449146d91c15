"""Parts of `tools/run_ablations.py`.

plan.py      sizes, arms, and the recipe of each run
starts.py    small world, image encoder trained without language, initial bundles
table.py     scores of all runs -> table with the spread over seeds
"""
