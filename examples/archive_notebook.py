# %% [markdown]
# # An archive of clips, from Python
#
# Run this file as a script, or cell by cell as a notebook: VS Code, Spyder and Jupyter (with jupytext) open it. Start
# it in the root of the repository; the demo model answers.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

import vidqa

ARCHIVE = Path("examples/clips")
folder = TemporaryDirectory()
out = Path(folder.name, "answers.parquet")
options = vidqa.RunOptions(cache_dir=Path(folder.name, "cache"))

# %% [markdown]
# One model for all calls. Its parts are loaded when the first call needs them.

# %%
model = vidqa.load_model("demo")
print(model)


# %% [markdown]
# One row per file and question. The function is called while the run works.


# %%
def show(progress: vidqa.Progress) -> None:
    print(f"{progress.phase}: {progress.done:.0f} of {progress.total or '?'} files, {progress.failed} failed")


questions = ["What happens?", vidqa.Question("count", "How many objects are there?", max_new_tokens=16)]
summary = vidqa.describe(ARCHIVE, out, questions=questions, model=model, options=options, progress=show)
print(summary)

# %% [markdown]
# The same call again finds nothing to do.

# %%
again = vidqa.describe(ARCHIVE, out, questions=questions, model=model, options=options)
print(again.nothing_done, again)

# %% [markdown]
# The table is a polars data frame.

# %%
table = vidqa.read_table(out)
print(table.select("path", "question", "answer", "status"))
print(table.group_by("question_id", "status").agg(pl.len()).sort("question_id"))

# %% [markdown]
# Find files by a text, and ask about the best one. Its features are in the cache already.

# %%
result = vidqa.search("a red cross", ARCHIVE, top=3, model=model, options=options)
for hit in result.hits:
    print(hit)
best = Path(result.hits[0].root, result.hits[0].path)
session = vidqa.chat(best, model=model, options=options)
print(session.ask("What happens?").text)
print(session.ask("How many objects are there?").text)

# %% [markdown]
# A mistake is an exception with a suggestion. A file that cannot be read is a failed row.

# %%
try:
    vidqa.describe(ARCHIVE, out, questions="captoin", model=model, options=options)
except vidqa.UsageError as error:
    print(error)

# %%
folder.cleanup()
