"""AnswerRow -> files: names (any bytes as text), schema, formats, store (the table of a run), lock."""
