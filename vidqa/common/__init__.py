"""Helpers that every layer may use: atomic files, file locks, devices, text for people.

atomic_io.py      write a file atomically; growing_folder.py does the same for a folder
file_lock.py      one process at a time may write a table or model
devices.py        CPU threads, CUDA devices; free_memory.py reports what is free
display.py        size of progress bars
"""
