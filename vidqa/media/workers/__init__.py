"""Decoder processes with time and memory limits.

In: `DecodeJob`s. Out: decoded media or a MediaError for each.

decode_pool.py   the pool that callers use
process.py       one process as seen by the pool; server.py is its main loop
ipc.py           messages over pipes
"""
