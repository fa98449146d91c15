"""Published layouts: each module interprets the keys and settings of one publication and plans its conversion.

video_llava_original.py, video_llava_hf.py, video_chatgpt.py, valley.py   one layout each
languagebind.py, clip_towers.py                                           vision and text towers
language_model.py                                                         the causal LLM
"""
