"""Bundles: the form of a model on disk.

registry.py   name or path -> folder
bundle.py     folder -> Bundle (identity, verification); parts -> folder, atomically
spec.py       bundle.json as frozen records; spec_json.py converts them from and to JSON, strictly
validate.py   which files a bundle may contain, without reading them whole
"""
